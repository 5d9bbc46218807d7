/* Reading a regular expression: what its compiler's parts share. */
#pragma once

#include "failure.h"
#include "regex_program.h"

typedef struct {
    const char *pattern;
    size_t size, at;
    unsigned depth;
    bool is_insensitive;
    uint32_t previous; /* what was before in (?i:..): a lower-case letter, a class, or 0 */
    Buffer steps, sets, items;
    Memory *memory;
    llm_error *error;
} Parser;

/* Fail with LLM_UNSUPPORTED and say where. */
llm_status unsupported(Parser *parser, const char *what);

static inline bool is_at_end(const Parser *parser) { return parser->at == parser->size; }

/* Whether these characters come next. */
bool follows(const Parser *parser, const char *text);

/* Step over these characters if they come next. */
bool skips(Parser *parser, const char *text);

/* The next character of the pattern, stepping over it. */
llm_status next_character(Parser *parser, uint32_t *code_point);

/* Read a set: a class from behind its bracket, an escape from behind its backslash, or a character.
 * It becomes `*set`. */
llm_status parse_class(Parser *parser, uint32_t *set);
llm_status parse_escape(Parser *parser, uint32_t *set);
llm_status parse_literal(Parser *parser, uint32_t *set);
/* The set of all characters but a line's end. */
llm_status add_any(Parser *parser, uint32_t *set);
