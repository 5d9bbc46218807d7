/* The native tokenizer as ctypes can call it: a tokenizer and its scratch are one pointer. */
#include <stdlib.h>
#include <string.h>

#include "detokenizer.h"

typedef struct {
    Memory memory;
    const Tokenizer *tokenizer;
    TokenizerScratch scratch;
} Harness;

llm_status harness_open(const char *json, size_t size, const llm_allocator *allocator,
                        Harness **opened, llm_error *error) {
    Harness *harness = calloc(1, sizeof *harness);
    harness->memory = memory_from(allocator);
    tokenizer_scratch_begin(&harness->scratch, allocator);
    *opened = harness;
    return tokenizer_open(json, size, &harness->memory, &harness->tokenizer, error);
}

void harness_close(Harness *harness) {
    tokenizer_scratch_end(&harness->scratch);
    memory_free(&harness->memory);
    free(harness);
}

/* Tokens of `count` texts, one behind the other in `texts`; `ends` are the texts', `id_ends` the
 * tokens'. */
llm_status harness_encode(Harness *harness, const char *texts, const size_t *ends, size_t count,
                          bool special, llm_token *ids, size_t capacity, size_t *id_ends,
                          llm_error *error) {
    size_t used = 0;
    for (size_t i = 0, start = 0; i < count; start = ends[i++]) {
        size_t added;
        const llm_status status =
            tokenizer_encode(harness->tokenizer, texts + start, ends[i] - start, special,
                             &harness->scratch, ids + used, capacity - used, &added, error);
        if (status != LLM_OK)
            return status;
        id_ends[i] = used += added;
    }
    return LLM_OK;
}

llm_status harness_decode(Harness *harness, const llm_token *ids, size_t count, bool skips_special,
                          const char **text, size_t *size, llm_error *error) {
    return tokenizer_decode(harness->tokenizer, ids, count, skips_special, &harness->scratch, text,
                            size, error);
}

/* The pieces of a sequence behind the first `prompt` of its tokens: those of each token and of the
 * end, one behind the other in `out`. */
llm_status harness_stream(Harness *harness, const llm_token *ids, size_t count, size_t prompt,
                          char *out, size_t *ends, const llm_allocator *allocator,
                          llm_error *error) {
    Detokenizer detokenizer;
    size_t used = 0;
    detokenizer_begin(&detokenizer, harness->tokenizer, &harness->scratch, allocator);
    llm_status status = detokenizer_restart(&detokenizer, ids, prompt, error);
    ids += prompt;
    count -= prompt;
    for (size_t i = 0; i <= count && status == LLM_OK; i++) {
        const char *text;
        size_t size;
        status = i < count ? detokenizer_push(&detokenizer, ids[i], &text, &size, error)
                           : detokenizer_finish(&detokenizer, &text, &size, error);
        if (status != LLM_OK)
            break;
        memcpy(out + used, text, size);
        ends[i] = used += size;
    }
    detokenizer_end(&detokenizer);
    return status;
}

/* ---- Memory that fails ---- */

typedef struct {
    size_t left; /* allocations that succeed */
    size_t held; /* that weren't released */
} Failing;

static void *allocate(size_t bytes, void *user_data) {
    Failing *failing = user_data;
    if (failing->left == 0)
        return NULL;
    failing->left--;
    failing->held++;
    return calloc(1, bytes);
}

static void release(void *memory, void *user_data) {
    Failing *failing = user_data;
    failing->held -= memory != NULL;
    free(memory);
}

/* Open, encode, decode and stream with all allocations from a number on failing. `held` receives
 * what was never released. */
llm_status harness_fail(const char *json, size_t json_size, const char *text, size_t size,
                        size_t succeeding, size_t *held) {
    Failing failing = {.left = succeeding};
    const llm_allocator allocator = {allocate, release, &failing};
    Harness *harness;
    const size_t capacity = 4 * size + 16;
    llm_token *ids = malloc(capacity * sizeof *ids);
    size_t id_end, length, *ends = malloc((capacity + 1) * sizeof *ends);
    char *out = malloc(16 * capacity);
    const char *decoded;
    llm_status status = harness_open(json, json_size, &allocator, &harness, NULL);
    if (status == LLM_OK)
        status = harness_encode(harness, text, &size, 1, true, ids, capacity, &id_end, NULL);
    if (status == LLM_OK)
        status = harness_decode(harness, ids, id_end, true, &decoded, &length, NULL);
    if (status == LLM_OK)
        status = harness_stream(harness, ids, id_end, id_end > 1, out, ends, &allocator, NULL);
    harness_close(harness);
    free(ids);
    free(ends);
    free(out);
    *held = failing.held;
    return status;
}
