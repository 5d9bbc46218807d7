/* Unicode's classes of characters, as the tokenizers library has them. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* General categories, a bit for each. */
typedef uint32_t CategorySet;

/* The category of a code point, alone in a set. */
CategorySet unicode_category(uint32_t code_point);

/* The categories of a name: "L" stands for "Lu", "Ll", ... Empty if there is no such name. */
CategorySet unicode_category_named(const char *name, size_t size);

/* White_Space */
bool unicode_is_space(uint32_t code_point);

/* Script=Han */
bool unicode_is_han(uint32_t code_point);

/* Nd, Nl or No. This one is of Unicode 17, as Rust's char::is_numeric. */
bool unicode_is_numeric(uint32_t code_point);

/* Alphabetic, a mark, a decimal number or connector punctuation: \w but for what dialects add. */
bool unicode_is_word(uint32_t code_point);
