#include "character_set.h"

bool is_word_character(uint32_t code_point) {
    /* In Latin-1 it has all numbers, beyond it decimal ones. */
    return unicode_is_word(code_point) || (code_point < 0x100 && unicode_is_numeric(code_point));
}

/* Whether the character is in any of the items. */
static bool is_in_items(const SetItem *items, size_t count, uint32_t code_point) {
    for (size_t i = 0; i < count; i++) {
        const SetItem *item = &items[i];
        bool is_in = false;
        switch (item->kind) {
        case SET_RANGE:
            is_in = code_point >= item->first && code_point <= item->last;
            break;
        case SET_CATEGORIES:
            is_in = unicode_category(code_point) & item->first;
            break;
        case SET_SPACE:
            is_in = unicode_is_space(code_point);
            break;
        case SET_WORD:
            is_in = is_word_character(code_point);
            break;
        case SET_HAN:
            is_in = unicode_is_han(code_point);
            break;
        case SET_NESTED:
            is_in = is_in_items(item + 1, item->first, code_point);
            i += item->first;
            break;
        }
        if (is_in != item->is_negated)
            return true;
    }
    return false;
}

bool character_set_has_other(const CharacterSet *set, uint32_t code_point) {
    return is_in_items(set->items, set->count, code_point) != set->is_negated;
}

void character_set_finish(CharacterSet *set) {
    set->ascii[0] = set->ascii[1] = 0;
    for (unsigned c = 0; c < 128; c++)
        if (character_set_has_other(set, c))
            set->ascii[c >> 6] |= (uint64_t)1 << (c & 63);
}
