/* What checking a JSON document and walking over it have in common. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

static inline bool json_is_space(char c) { return c == ' ' || c == '\n' || c == '\t' || c == '\r'; }
static inline bool json_is_digit(char c) { return c >= '0' && c <= '9'; }

static inline const char *json_skip_space(const char *at, const char *limit) {
    while (at < limit && json_is_space(*at))
        at++;
    return at;
}

/* Read the code point of an escape that begins at a backslash and return where it ends, or NULL. */
const char *json_read_escape(const char *at, const char *limit, uint32_t *code_point);
