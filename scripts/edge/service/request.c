#include "request.h"

#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

static const char mark[] = "#!llm";

typedef enum kind { NUMBER, SIZE, SEED } kind;

static const struct option {
    const char *name; /* with what comes before its value */
    kind kind;
    size_t field;
} options[] = {
    {"temperature=", NUMBER, offsetof(request, sampling.temperature)},
    {"top_k=", SIZE, offsetof(request, sampling.top_k)},
    {"top_p=", NUMBER, offsetof(request, sampling.top_p)},
    {"min_p=", NUMBER, offsetof(request, sampling.min_p)},
    {"repetition_penalty=", NUMBER, offsetof(request, sampling.repetition_penalty)},
    {"max_new_tokens=", SIZE, offsetof(request, generation.max_new_tokens)},
    {"seed=", SEED, offsetof(request, generation.seed)},
};

/* Store the number that a text begins with; returns what follows, or NULL if it begins with none.
 */
static const char *store(const struct option *option, const char *text, request *read) {
    void *const field = (char *)read + option->field;
    char *end;
    errno = 0;
    if (strchr(" \n-+", *text))
        return NULL;
    if (option->kind == NUMBER)
        *(double *)field = strtod(text, &end);
    else if (option->kind == SIZE)
        *(size_t *)field = strtoull(text, &end, 10);
    else
        *(uint64_t *)field = strtoull(text, &end, 10);
    read->generation.has_seed |= option->kind == SEED;
    return end != text && errno == 0 && strchr(" \n", *end) ? end : NULL;
}

static const char *read_option(const char *text, request *read) {
    for (size_t i = 0; i < sizeof options / sizeof *options; i++) {
        const size_t length = strlen(options[i].name);
        if (strncmp(text, options[i].name, length) == 0)
            return store(&options[i], text + length, read);
    }
    return NULL;
}

bool request_read(const char *text, size_t length, request *read) {
    *read = (request){.sampling.size = sizeof read->sampling,
                      .generation.size = sizeof read->generation};
    const char *at = text;
    if (strncmp(text, mark, strlen(mark)) == 0 && strchr(" \n", text[strlen(mark)])) {
        for (at += strlen(mark); at && *at == ' ';)
            at = at[1] == ' ' || at[1] == '\n' ? at + 1 : read_option(at + 1, read);
        if (!at || *at != '\n')
            return false;
        at++;
    }
    read->prompt = at;
    read->length = length - (size_t)(at - text);
    return true;
}
