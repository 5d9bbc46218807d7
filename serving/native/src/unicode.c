#include "unicode.h"

#include <string.h>

#include "unicode_categories_table.h"

#define SET(category) ((CategorySet)1 << CATEGORY_##category)

CategorySet unicode_category(uint32_t code_point) {
    return (CategorySet)1 << category_of(code_point);
}

CategorySet unicode_category_named(const char *name, size_t size) {
    static const char names[] = "LuLlLtLmLoMnMcMeNdNlNoPcPdPsPePiPfPoSmScSkSoZsZlZpCcCfCsCoCn";
    CategorySet set = 0;
    if (size == 1 || size == 2)
        for (size_t category = 0; category < sizeof names / 2; category++)
            if (memcmp(names + 2 * category, name, size) == 0)
                set |= (CategorySet)1 << category;
    return set;
}

bool unicode_is_space(uint32_t code_point) {
    if (code_point < 0x80)
        return code_point == ' ' || (code_point >= '\t' && code_point <= '\r');
    return code_point == 0x85 || (unicode_category(code_point) & (SET(ZS) | SET(ZL) | SET(ZP)));
}

static bool is_in(uint32_t code_point, const uint32_t (*ranges)[2], size_t count) {
    size_t first = 0;
    while (count > 0) {
        const size_t half = count / 2;
        if (code_point > ranges[first + half][1]) {
            first += half + 1;
            count -= half + 1;
        } else if (code_point < ranges[first + half][0]) {
            count = half;
        } else {
            return true;
        }
    }
    return false;
}

bool unicode_is_han(uint32_t code_point) {
    return is_in(code_point, han_ranges, sizeof han_ranges / sizeof *han_ranges);
}

bool unicode_is_numeric(uint32_t code_point) {
    static const uint32_t newer[][2] = {{0x11de0, 0x11de9}, {0x16ff4, 0x16ff6}};
    return (unicode_category(code_point) & (SET(ND) | SET(NL) | SET(NO))) ||
           is_in(code_point, newer, sizeof newer / sizeof *newer);
}

bool unicode_is_word(uint32_t code_point) {
    /* Symbols that are Alphabetic: circled and squared letters. */
    static const uint32_t letters[][2] = {
        {0x24b6, 0x24e9}, {0x1f130, 0x1f149}, {0x1f150, 0x1f169}, {0x1f170, 0x1f189}};
    const CategorySet word = SET(LU) | SET(LL) | SET(LT) | SET(LM) | SET(LO) | SET(MN) | SET(MC) |
                             SET(ME) | SET(ND) | SET(NL) | SET(PC);
    return (unicode_category(code_point) & word) ||
           is_in(code_point, letters, sizeof letters / sizeof *letters);
}
