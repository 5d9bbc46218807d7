/* Sets of characters: the classes of regular expressions. */
#pragma once

#include "memory.h"
#include "unicode.h"

typedef enum {
    SET_RANGE,      /* from `first` to `last` */
    SET_CATEGORIES, /* those of `first`, a CategorySet */
    SET_SPACE,
    SET_WORD,
    SET_HAN,
    SET_NESTED, /* what the `first` items that follow have in all */
} SetItemKind;

typedef struct {
    SetItemKind kind;
    bool is_negated;
    uint32_t first, last;
} SetItem;

/* A character is in a set if it is in any of its items, or in none if the set is negated. */
typedef struct {
    uint64_t ascii[2]; /* decided in advance */
    const SetItem *items;
    size_t count;
    bool is_negated;
} CharacterSet;

/* Decide what can be decided in advance, once the items are there. */
void character_set_finish(CharacterSet *set);

/* Whether a character that isn't ASCII is in the set. */
bool character_set_has_other(const CharacterSet *set, uint32_t code_point);

static inline bool character_set_has_ascii(const CharacterSet *set, unsigned char c) {
    return set->ascii[c >> 6] >> (c & 63) & 1;
}

/* \w of Oniguruma. */
bool is_word_character(uint32_t code_point);
