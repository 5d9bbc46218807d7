/* What tokenizers search text for: a fixed text, a regular expression, or a digit. */
#pragma once

#include "json.h"
#include "regex.h"

typedef enum { PATTERN_TEXT, PATTERN_REGEX, PATTERN_DIGIT } PatternKind;

typedef struct {
    PatternKind kind;
    const char *text;
    size_t size;
    const Regex *regex;
} Pattern;

/* Copy a JSON string's text. */
llm_status read_text(JsonValue string, Memory *memory, const char **text, size_t *size,
                     llm_error *error);

/* Read {"String": ".."} or {"Regex": ".."}. */
llm_status pattern_read(JsonValue json, Memory *memory, Pattern *pattern, llm_error *error);

/* As regex_find. */
llm_status pattern_find(const Pattern *pattern, const char *text, size_t size, size_t from,
                        RegexScratch *scratch, Span *found, llm_error *error);
