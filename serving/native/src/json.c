#include "json.h"

#include <stdlib.h>
#include <string.h>

#include "json_text.h"
#include "utf8.h"

/* The value of four hexadecimal digits, or UINT32_MAX. */
static uint32_t hexadecimal(const char *digits, const char *limit) {
    if (limit - digits < 4)
        return UINT32_MAX;
    uint32_t value = 0;
    for (int i = 0; i < 4; i++) {
        const char c = digits[i];
        const int lower = c | 0x20;
        if (json_is_digit(c))
            value = value << 4 | (uint32_t)(c - '0');
        else if (lower >= 'a' && lower <= 'f')
            value = value << 4 | (uint32_t)(lower - 'a' + 10);
        else
            return UINT32_MAX;
    }
    return value;
}

/* Read the code point of an escape that begins at a backslash and return where it ends, or NULL. */
const char *json_read_escape(const char *at, const char *limit, uint32_t *code_point) {
    if (limit - at < 2)
        return NULL;
    static const char letters[] = "\"\\/bfnrt", meanings[] = "\"\\/\b\f\n\r\t";
    const char *letter = memchr(letters, at[1], sizeof letters - 1);
    if (letter) {
        *code_point = (unsigned char)meanings[letter - letters];
        return at + 2;
    }
    if (at[1] != 'u' || (*code_point = hexadecimal(at + 2, limit)) == UINT32_MAX)
        return NULL;
    at += 6;
    if (*code_point < 0xd800 || *code_point > 0xdfff)
        return at;
    /* One surrogate is no character: two are. */
    if (*code_point > 0xdbff || limit - at < 2 || at[0] != '\\' || at[1] != 'u')
        return NULL;
    const uint32_t low = hexadecimal(at + 2, limit);
    if (low < 0xdc00 || low > 0xdfff)
        return NULL;
    *code_point = 0x10000 + ((*code_point - 0xd800) << 10) + (low - 0xdc00);
    return at + 6;
}

/* ---- Walking ---- */

JsonType json_type(JsonValue value) {
    if (!value.start)
        return JSON_ABSENT;
    switch (*value.start) {
    case '{':
        return JSON_OBJECT;
    case '[':
        return JSON_ARRAY;
    case '"':
        return JSON_STRING;
    case 'n':
        return JSON_NULL;
    case 't':
        return JSON_TRUE;
    case 'f':
        return JSON_FALSE;
    default:
        return JSON_NUMBER;
    }
}

/* Where a string ends, behind its closing quote. */
static const char *end_of_string(const char *at) {
    for (at++; *at != '"'; at++)
        at += *at == '\\';
    return at + 1;
}

/* Where an array or object ends. Depth needs no stack: the brackets are known to match. */
static const char *end_of_items(const char *at) {
    size_t depth = 0;
    do {
        switch (*at) {
        case '"':
            at = end_of_string(at);
            break;
        case '{':
        case '[':
            depth++;
            at++;
            break;
        case '}':
        case ']':
            depth--;
            at++;
            break;
        default:
            at++;
        }
    } while (depth > 0);
    return at;
}

/* Where a value ends. */
static const char *end_of_value(const char *at, const char *limit) {
    if (*at == '"')
        return end_of_string(at);
    if (*at == '{' || *at == '[')
        return end_of_items(at);
    while (at < limit && *at != ',' && *at != ']' && *at != '}' && !json_is_space(*at))
        at++;
    return at;
}

JsonItems json_items(JsonValue value) {
    const JsonType type = json_type(value);
    if (type != JSON_ARRAY && type != JSON_OBJECT)
        return (JsonItems){0};
    return (JsonItems){
        .value.limit = value.limit, .next = value.start + 1, .is_object = type == JSON_OBJECT};
}

bool json_next(JsonItems *items) {
    if (!items->next)
        return false;
    const char *limit = items->value.limit, *at = json_skip_space(items->next, limit);
    if (*at == ',')
        at = json_skip_space(at + 1, limit);
    if (*at == ']' || *at == '}') {
        items->next = NULL;
        return false;
    }
    if (items->is_object) {
        items->name = (JsonValue){at, limit};
        at = json_skip_space(end_of_string(at), limit) + 1; /* the colon */
        at = json_skip_space(at, limit);
    }
    items->value.start = at;
    items->next = end_of_value(at, limit);
    return true;
}

size_t json_count(JsonValue value) {
    size_t count = 0;
    for (JsonItems items = json_items(value); json_next(&items);)
        count++;
    return count;
}

void json_members(JsonValue object, const char *const *names, JsonValue *values, size_t count) {
    memset(values, 0, count * sizeof *values);
    if (json_type(object) != JSON_OBJECT)
        return;
    for (JsonItems items = json_items(object); json_next(&items);)
        for (size_t i = 0; i < count; i++)
            if (json_string_is(items.name, names[i]))
                values[i] = items.value;
}

JsonValue json_member(JsonValue object, const char *name) {
    JsonValue value;
    json_members(object, &name, &value, 1);
    return value;
}

/* ---- Strings ---- */

/* Write a string's next character to `bytes` (of UTF8_LONGEST) and return how many, stepping over
 * it; 0 at the end. */
static size_t next_character(const char **at, const char *limit, char *bytes) {
    if (**at == '"')
        return 0;
    if (**at != '\\') {
        bytes[0] = *(*at)++;
        return 1;
    }
    uint32_t code_point;
    *at = json_read_escape(*at, limit, &code_point);
    return utf8_write(code_point, bytes);
}

size_t json_string_size(JsonValue string) {
    if (json_type(string) != JSON_STRING)
        return 0;
    const char *at = string.start + 1;
    char bytes[UTF8_LONGEST];
    size_t size = 0, taken;
    while ((taken = next_character(&at, string.limit, bytes)) > 0)
        size += taken;
    return size;
}

void json_string_copy(JsonValue string, char *text) {
    if (json_type(string) != JSON_STRING)
        return;
    const char *at = string.start + 1;
    char bytes[UTF8_LONGEST];
    size_t taken;
    while ((taken = next_character(&at, string.limit, bytes)) > 0) {
        memcpy(text, bytes, taken);
        text += taken;
    }
}

bool json_string_is(JsonValue string, const char *text) {
    if (json_type(string) != JSON_STRING)
        return false;
    const char *at = string.start + 1;
    char bytes[UTF8_LONGEST];
    size_t taken;
    while ((taken = next_character(&at, string.limit, bytes)) > 0)
        for (size_t i = 0; i < taken; i++, text++)
            if (!*text || *text != bytes[i])
                return false;
    return !*text;
}

/* ---- Numbers ---- */

bool json_integer(JsonValue number, int64_t *integer) {
    if (json_type(number) != JSON_NUMBER)
        return false;
    const bool is_negative = *number.start == '-';
    const char *at = number.start + is_negative;
    /* Counted downwards, where there is one more. */
    int64_t value = 0;
    for (; at < number.limit && json_is_digit(*at); at++)
        if (__builtin_mul_overflow(value, 10, &value) ||
            __builtin_sub_overflow(value, *at - '0', &value))
            return false;
    if (at < number.limit && memchr(".eE", *at, 3))
        return false;
    if (!is_negative && __builtin_sub_overflow((int64_t)0, value, &value))
        return false;
    *integer = value;
    return true;
}

/* Digits of a number that are looked at. A double is decided by at most 767; in files that people
 * write it has 17. */
#define MOST_DIGITS 800

bool json_double(JsonValue number, double *result) {
    if (json_type(number) != JSON_NUMBER)
        return false;
    /* Rewritten without its point, a number reads the same in any locale. */
    char text[MOST_DIGITS + 32], *end = text;
    const char *at = number.start;
    if (*at == '-')
        *end++ = *at++;
    int64_t exponent = 0, written = 0;
    bool is_fraction = false;
    for (; at < number.limit && (json_is_digit(*at) || *at == '.'); at++) {
        if (*at == '.') {
            is_fraction = true;
        } else {
            const bool is_kept = written < MOST_DIGITS && end - text < MOST_DIGITS;
            if (is_kept && (*at != '0' || written > 0)) {
                *end++ = *at;
                written++;
            }
            exponent += !is_kept;
            exponent -= is_fraction;
        }
    }
    if (at < number.limit && (*at == 'e' || *at == 'E')) {
        const bool is_negative = *++at == '-';
        at += is_negative || *at == '+';
        int64_t value = 0;
        for (; at < number.limit && json_is_digit(*at); at++)
            if (value < 1000000)
                value = value * 10 + (*at - '0');
        exponent += is_negative ? -value : value;
    }
    if (written == 0) {
        *result = *number.start == '-' ? -0.0 : 0.0;
        return true;
    }
    /* What is beyond these is infinity or zero, in 800 digits too. */
    exponent = exponent > 9999 ? 9999 : exponent < -9999 ? -9999 : exponent;
    *end++ = 'e';
    if (exponent < 0)
        *end++ = '-';
    const unsigned magnitude = (unsigned)(exponent < 0 ? -exponent : exponent);
    for (unsigned power = 1000; power > 0; power /= 10)
        *end++ = (char)('0' + magnitude / power % 10);
    *end = 0;
    *result = strtod(text, NULL);
    return true;
}
