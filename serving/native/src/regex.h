/* Regular expressions as tokenizers split text with them: Oniguruma's, over valid UTF-8.
 *
 * There are alternatives, groups, character classes (with nested ones, \s \d \w \h, \p{..} of
 * categories and Han), greedy and possessive quantifiers, look-ahead, look-behind of one character,
 * line anchors and word boundaries, and (?i:..) of ASCII. Anything else is refused, never
 * misunderstood: back-references, lazy quantifiers, intersections of classes, patterns that match
 * no text. The first alternative that matches wins.
 */
#pragma once

#include "buffer.h"

typedef struct Regex Regex;

/* What matching needs: one for all expressions of a thread. */
typedef struct {
    Buffer choices;
    Memory *memory;
} RegexScratch;

typedef struct {
    size_t start, end;
} Span;

/* Compile an expression into `memory`. LLM_UNSUPPORTED says in `error` what isn't understood. */
llm_status regex_compile(const char *pattern, size_t size, Memory *memory, const Regex **regex,
                         llm_error *error);

/* Find the first match that begins at `from` or later. It is never empty; `found->start` is `size`
 * if there is none. LLM_UNSUPPORTED if it takes too many attempts. */
llm_status regex_find(const Regex *regex, const char *text, size_t size, size_t from,
                      RegexScratch *scratch, Span *found, llm_error *error);
