#include "tokenizer_pattern.h"

#include <string.h>

#include "failure.h"
#include "unicode.h"
#include "utf8.h"

llm_status read_text(JsonValue string, Memory *memory, const char **text, size_t *size,
                     llm_error *error) {
    char *copy;
    if (json_type(string) != JSON_STRING)
        return fail(error, LLM_DAMAGED, "tokenizer.json lacks a text that its parts need.");
    *size = json_string_size(string);
    TRY(memory_take(memory, *size + 1, 1, &copy, error));
    json_string_copy(string, copy);
    *text = copy;
    return LLM_OK;
}

llm_status pattern_read(JsonValue json, Memory *memory, Pattern *pattern, llm_error *error) {
    const JsonValue regex = json_member(json, "Regex");
    if (json_type(regex) == JSON_STRING) {
        TRY(read_text(regex, memory, &pattern->text, &pattern->size, error));
        pattern->kind = PATTERN_REGEX;
        return regex_compile(pattern->text, pattern->size, memory, &pattern->regex, error);
    }
    pattern->kind = PATTERN_TEXT;
    TRY(read_text(json_member(json, "String"), memory, &pattern->text, &pattern->size, error));
    return pattern->size
               ? LLM_OK
               : fail(error, LLM_UNSUPPORTED, "The tokenizer searches for an empty text.");
}

static size_t find_text(const Pattern *pattern, const char *text, size_t size, size_t from) {
    while (size - from >= pattern->size) {
        const char *first = memchr(text + from, pattern->text[0], size - from);
        if (!first)
            break;
        from = (size_t)(first - text);
        if (size - from >= pattern->size && memcmp(first, pattern->text, pattern->size) == 0)
            return from;
        from++;
    }
    return size;
}

static Span find_digit(const char *text, size_t size, size_t from) {
    size_t taken;
    for (; from < size; from += taken) {
        uint32_t code_point;
        taken = utf8_read(text + from, size - from, &code_point);
        if (unicode_is_numeric(code_point))
            return (Span){from, from + taken};
    }
    return (Span){size, size};
}

llm_status pattern_find(const Pattern *pattern, const char *text, size_t size, size_t from,
                        RegexScratch *scratch, Span *found, llm_error *error) {
    if (pattern->kind == PATTERN_REGEX)
        return regex_find(pattern->regex, text, size, from, scratch, found, error);
    if (pattern->kind == PATTERN_DIGIT) {
        *found = find_digit(text, size, from);
        return LLM_OK;
    }
    const size_t start = find_text(pattern, text, size, from);
    *found = (Span){start, start < size ? start + pattern->size : size};
    return LLM_OK;
}
