/* UTF-8 (RFC 3629), one code point at a time. */
#pragma once

#include <stddef.h>
#include <stdint.h>

#define UTF8_INVALID UINT32_MAX
#define UTF8_LONGEST 4
#define REPLACEMENT_CHARACTER 0xfffd

/* Read the code point that `size` > 0 bytes begin with, and return how many bytes it takes.
 *
 * Where they begin with none, the code point is UTF8_INVALID, and the bytes taken are those that
 * one U+FFFD stands for when a text is mended: the longest beginning of a sequence that could have
 * been valid (Unicode's "maximal subpart"; Python's errors="replace" does the same).
 */
static inline size_t utf8_read(const char *text, size_t size, uint32_t *code_point) {
    const unsigned char *bytes = (const unsigned char *)text;
    const unsigned char first = bytes[0];
    if (first < 0x80) {
        *code_point = first;
        return 1;
    }
    *code_point = UTF8_INVALID;
    if (first < 0xc2 || first > 0xf4)
        return 1;
    const size_t length = first < 0xe0 ? 2 : first < 0xf0 ? 3 : 4;
    /* Of these first bytes, some second bytes would spell too much, too little or a surrogate. */
    const unsigned char low = first == 0xe0 ? 0xa0 : first == 0xf0 ? 0x90 : 0x80;
    const unsigned char high = first == 0xed ? 0x9f : first == 0xf4 ? 0x8f : 0xbf;
    if (size < 2 || bytes[1] < low || bytes[1] > high)
        return 1;
    uint32_t value = ((uint32_t)first & (0x7f >> length)) << 6 | (bytes[1] & 0x3f);
    for (size_t i = 2; i < length; i++) {
        if (i == size || (bytes[i] & 0xc0) != 0x80)
            return i;
        value = value << 6 | (bytes[i] & 0x3f);
    }
    *code_point = value;
    return length;
}

/* Write a code point, at most UTF8_LONGEST bytes, and return how many. */
static inline size_t utf8_write(uint32_t code_point, char *text) {
    unsigned char *bytes = (unsigned char *)text;
    if (code_point < 0x80) {
        bytes[0] = (unsigned char)code_point;
        return 1;
    }
    const size_t length = code_point < 0x800 ? 2 : code_point < 0x10000 ? 3 : 4;
    for (size_t i = length - 1; i > 0; i--, code_point >>= 6)
        bytes[i] = (unsigned char)(0x80 | (code_point & 0x3f));
    bytes[0] = (unsigned char)((0xf00 >> length) | code_point);
    return length;
}
