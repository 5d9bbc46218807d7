#include "unicode_nfc.h"

#include <string.h>

#include "failure.h"
#include "unicode_nfc_table.h"
#include "utf8.h"

/* The Hangul syllables, which are composed by arithmetic. */
enum {
    SYLLABLES = 0xac00,
    LEADING = 0x1100,
    VOWELS = 0x1161,
    TRAILING = 0x11a7, /* one before the first */
    LEADING_COUNT = 19,
    VOWEL_COUNT = 21,
    TRAILING_COUNT = 28,
    SYLLABLE_COUNT = LEADING_COUNT * VOWEL_COUNT * TRAILING_COUNT,
};

/* What combining_of says of a character of class 0 that isn't always the same in form C. */
#define UNSTABLE 255
/* A canonical decomposition has at most four characters. */
#define LONGEST_DECOMPOSITION 4

#define COUNT(array) (sizeof(array) / sizeof *(array))

static uint8_t combining_class(uint32_t code_point) {
    const uint8_t combining = combining_of(code_point);
    return combining == UNSTABLE ? 0 : combining;
}

/* ---- One character ---- */

/* Write a character's full decomposition and return its length. */
static size_t decompose(uint32_t code_point, uint32_t *points) {
    if (code_point - SYLLABLES < SYLLABLE_COUNT) {
        const uint32_t syllable = code_point - SYLLABLES;
        points[0] = LEADING + syllable / (VOWEL_COUNT * TRAILING_COUNT);
        points[1] = VOWELS + syllable / TRAILING_COUNT % VOWEL_COUNT;
        points[2] = TRAILING + syllable % TRAILING_COUNT;
        return points[2] == TRAILING ? 2 : 3;
    }
    size_t first = 0, count = COUNT(decompositions);
    while (count > 0) {
        const size_t middle = first + count / 2;
        if (decompositions[middle].code_point == code_point) {
            const size_t length = decompose(decompositions[middle].first, points);
            points[length] = decompositions[middle].second;
            return length + (points[length] != 0);
        }
        if (decompositions[middle].code_point < code_point) {
            count -= middle + 1 - first;
            first = middle + 1;
        } else {
            count = middle - first;
        }
    }
    points[0] = code_point;
    return 1;
}

/* What two characters compose to, or 0. */
static uint32_t compose(uint32_t left, uint32_t right) {
    if (left - LEADING < LEADING_COUNT && right - VOWELS < VOWEL_COUNT)
        return SYLLABLES + ((left - LEADING) * VOWEL_COUNT + (right - VOWELS)) * TRAILING_COUNT;
    if (left - SYLLABLES < SYLLABLE_COUNT && (left - SYLLABLES) % TRAILING_COUNT == 0 &&
        right - TRAILING - 1 < TRAILING_COUNT - 1)
        return left + (right - TRAILING);
    const uint64_t wanted = (uint64_t)left << 32 | right;
    size_t first = 0, count = COUNT(compositions);
    while (count > 0) {
        const size_t half = count / 2, place = compositions[first + half];
        const uint64_t pair =
            (uint64_t)decompositions[place].first << 32 | decompositions[place].second;
        if (pair == wanted)
            return decompositions[place].code_point;
        if (pair < wanted) {
            first += half + 1;
            count -= half + 1;
        } else {
            count = half;
        }
    }
    return 0;
}

/* ---- A stretch of text whose first character may combine with the others ---- */

/* Order marks by their class, those of one class as they were. `sorted` is as long. */
static void sort_marks(uint32_t *marks, size_t count, uint32_t *sorted) {
    size_t ends[256] = {0};
    bool is_sorted = true;
    for (size_t i = 0; i < count; i++) {
        ends[combining_class(marks[i])]++;
        is_sorted &= i == 0 || combining_class(marks[i - 1]) <= combining_class(marks[i]);
    }
    if (is_sorted)
        return;
    for (size_t class = 1; class < COUNT(ends); class++)
        ends[class] += ends[class - 1];
    for (size_t i = count; i-- > 0;)
        sorted[--ends[combining_class(marks[i])]] = marks[i];
    memcpy(marks, sorted, count * sizeof *marks);
}

/* Compose in place and return the length. */
static size_t compose_all(uint32_t *points, size_t count) {
    size_t length = 0, starter = 0;
    bool has_starter = false;
    for (size_t i = 0; i < count; i++) {
        const uint8_t class = combining_class(points[i]);
        /* A character is blocked by one between of no lower class: a starter by any. */
        const bool is_blocked =
            length - starter > 1 && combining_class(points[length - 1]) >= class;
        const uint32_t composed =
            has_starter && !is_blocked ? compose(points[starter], points[i]) : 0;
        if (composed) {
            points[starter] = composed;
            continue;
        }
        if (class == 0) {
            starter = length;
            has_starter = true;
        }
        points[length++] = points[i];
    }
    return length;
}

static llm_status append_stretch(const char *text, size_t size, Buffer *points, Buffer *out,
                                 Memory *memory, llm_error *error) {
    /* Twice, for sorting. */
    points->count = 0;
    TRY(buffer_reserve(points, 2 * LONGEST_DECOMPOSITION * size, sizeof(uint32_t), memory, error));
    uint32_t *items = points->items;
    size_t count = 0;
    for (size_t at = 0; at < size;) {
        uint32_t code_point;
        at += utf8_read(text + at, size - at, &code_point);
        count += decompose(code_point, items + count);
    }
    for (size_t i = 0; i < count;) {
        size_t marks = 0;
        while (i + marks < count && combining_class(items[i + marks]))
            marks++;
        if (marks > 1)
            sort_marks(items + i, marks, items + count);
        i += marks + 1;
    }
    count = compose_all(items, count);
    TRY(buffer_reserve(out, UTF8_LONGEST * count, 1, memory, error));
    for (size_t i = 0; i < count; i++)
        out->count += utf8_write(items[i], (char *)out->items + out->count);
    return LLM_OK;
}

/* ---- Texts ---- */

/* Where the first character that may change begins, and the character before it. */
static size_t find_unstable(const char *text, size_t size, size_t *before) {
    size_t at = *before = 0;
    while (at < size) {
        /* Nothing below U+0300, which begins with 0xcc, changes on its own. */
        if ((unsigned char)text[at] < 0x80) {
            *before = at++;
            continue;
        }
        uint32_t code_point;
        const size_t taken = utf8_read(text + at, size - at, &code_point);
        if (code_point >= 0x300 && combining_of(code_point))
            return at;
        *before = at;
        at += taken;
    }
    *before = size;
    return size;
}

size_t nfc_stable_size(const char *text, size_t size) {
    size_t before;
    find_unstable(text, size, &before);
    return before;
}

/* Where a stretch ends: at the next character that never changes. */
static size_t end_of_stretch(const char *text, size_t size, size_t at) {
    while (at < size) {
        uint32_t code_point;
        const size_t taken = utf8_read(text + at, size - at, &code_point);
        if (!combining_of(code_point))
            return at;
        at += taken;
    }
    return size;
}

llm_status nfc_append(const char *text, size_t size, Buffer *points, Buffer *out, Memory *memory,
                      llm_error *error) {
    while (size > 0) {
        size_t stretch;
        const size_t unstable = find_unstable(text, size, &stretch);
        const size_t end = end_of_stretch(text, size, unstable);
        TRY(buffer_append(out, text, stretch, memory, error));
        if (end > stretch)
            TRY(append_stretch(text + stretch, end - stretch, points, out, memory, error));
        text += end;
        size -= end;
    }
    return LLM_OK;
}
