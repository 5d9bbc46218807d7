/* Reading character classes. */
#include <string.h>

#include "regex_parser.h"
#include "utf8.h"

#define DEEPEST 16
#define LAST_CODE_POINT 0x10ffff
#define A_CLASS UINT32_MAX

bool follows(const Parser *parser, const char *text) {
    const size_t size = strlen(text);
    return parser->size - parser->at >= size &&
           memcmp(parser->pattern + parser->at, text, size) == 0;
}

bool skips(Parser *parser, const char *text) {
    if (!follows(parser, text))
        return false;
    parser->at += strlen(text);
    return true;
}

llm_status next_character(Parser *parser, uint32_t *code_point) {
    *code_point = 0;
    if (is_at_end(parser))
        return unsupported(parser, "an end where more is expected");
    parser->at += utf8_read(parser->pattern + parser->at, parser->size - parser->at, code_point);
    return LLM_OK;
}

/* ---- Items ---- */

static llm_status add_item(Parser *parser, SetItem item) {
    TRY(buffer_reserve(&parser->items, 1, sizeof item, parser->memory, parser->error));
    ((SetItem *)parser->items.items)[parser->items.count++] = item;
    return LLM_OK;
}

static llm_status add_range(Parser *parser, uint32_t first, uint32_t last) {
    return add_item(parser, (SetItem){SET_RANGE, false, first, last});
}

static bool is_letter(uint32_t c) { return c < 0x80 && (c | 0x20) >= 'a' && (c | 0x20) <= 'z'; }

/* A character, in both cases where they are equal. Beyond ASCII that isn't understood. */
static llm_status add_character(Parser *parser, uint32_t c) {
    if (parser->is_insensitive && c >= 0x80)
        return unsupported(parser, "letters beyond ASCII in (?i:..)");
    TRY(add_range(parser, c, c));
    if (!parser->is_insensitive || !is_letter(c))
        return LLM_OK;
    TRY(add_range(parser, c ^ 0x20, c ^ 0x20));
    if ((c | 0x20) == 's') /* the long s */
        return add_range(parser, 0x17f, 0x17f);
    if ((c | 0x20) == 'k') /* the Kelvin sign */
        return add_range(parser, 0x212a, 0x212a);
    return LLM_OK;
}

/* Make a set of the items that were added from `first` on. */
static llm_status finish_set(Parser *parser, size_t first, bool is_negated, uint32_t *set) {
    const size_t count = parser->items.count - first;
    SetItem *items;
    TRY(memory_take(parser->memory, count, sizeof *items, &items, parser->error));
    memcpy(items, (SetItem *)parser->items.items + first, count * sizeof *items);
    parser->items.count = first;
    TRY(buffer_reserve(&parser->sets, 1, sizeof(CharacterSet), parser->memory, parser->error));
    *set = (uint32_t)parser->sets.count++;
    CharacterSet *added = (CharacterSet *)parser->sets.items + *set;
    *added = (CharacterSet){.items = items, .count = count, .is_negated = is_negated};
    character_set_finish(added);
    return LLM_OK;
}

/* ---- Escapes ---- */

/* \p{..} from behind the p. */
static llm_status parse_property(Parser *parser, bool is_negated) {
    if (!skips(parser, "{"))
        return unsupported(parser, "a property without braces");
    is_negated ^= skips(parser, "^");
    const char *name = parser->pattern + parser->at;
    const char *end = memchr(name, '}', parser->size - parser->at);
    if (!end)
        return unsupported(parser, "a property without end");
    const size_t size = (size_t)(end - name);
    const CategorySet categories = unicode_category_named(name, size);
    if (parser->is_insensitive)
        return unsupported(parser, "properties in (?i:..)");
    parser->at += size + 1;
    if (size == 3 && memcmp(name, "Han", 3) == 0)
        return add_item(parser, (SetItem){SET_HAN, is_negated, 0, 0});
    if (!categories)
        return unsupported(parser, "a property that this library doesn't have");
    return add_item(parser, (SetItem){SET_CATEGORIES, is_negated, categories, 0});
}

static llm_status parse_hexadecimal(Parser *parser, int digits, uint32_t *code_point) {
    *code_point = 0;
    for (int i = 0; i < digits; i++) {
        uint32_t c;
        TRY(next_character(parser, &c));
        const uint32_t lower = c | 0x20;
        if (c >= '0' && c <= '9')
            *code_point = *code_point << 4 | (c - '0');
        else if (lower >= 'a' && lower <= 'f')
            *code_point = *code_point << 4 | (lower - 'a' + 10);
        else
            return unsupported(parser, "a wrong hexadecimal number");
    }
    return LLM_OK;
}

/* From behind the backslash: either one character is read, or an item is added. */
static llm_status parse_escaped(Parser *parser, bool *is_character, uint32_t *character) {
    static const char letters[] = "nrtfvae", meanings[] = "\n\r\t\f\v\a\x1b";
    uint32_t c;
    TRY(next_character(parser, &c));
    *is_character = false;
    switch (c) {
    case 's':
    case 'S':
        return add_item(parser, (SetItem){SET_SPACE, c == 'S', 0, 0});
    case 'w':
    case 'W':
        return add_item(parser, (SetItem){SET_WORD, c == 'W', 0, 0});
    case 'd':
    case 'D':
        return add_item(parser,
                        (SetItem){SET_CATEGORIES, c == 'D', unicode_category_named("Nd", 2), 0});
    case 'p':
    case 'P':
        return parse_property(parser, c == 'P');
    }
    *is_character = true;
    *character = c;
    if (c == 'x' || c == 'u') {
        TRY(parse_hexadecimal(parser, c == 'x' ? 2 : 4, character));
        if (*character >= (c == 'x' ? 0x80 : 0xd800) && *character < 0xe000)
            return unsupported(parser, "an escape that is no character");
        return LLM_OK;
    }
    const char *letter = c < 0x80 ? memchr(letters, (int)c, sizeof letters - 1) : NULL;
    if (letter)
        *character = (unsigned char)meanings[letter - letters];
    else if (is_letter(c) || (c >= '0' && c <= '9'))
        return unsupported(parser, "an escape that this library doesn't have");
    return LLM_OK;
}

/* ---- Classes ---- */

/* An item of a class that is a character or begins with one. */
static llm_status parse_range(Parser *parser, uint32_t first) {
    if (!follows(parser, "-") || follows(parser, "-]"))
        return add_character(parser, first);
    parser->at++;
    uint32_t last;
    bool is_character = true;
    if (follows(parser, "["))
        return unsupported(parser, "a range that ends with a class");
    if (skips(parser, "\\"))
        TRY(parse_escaped(parser, &is_character, &last));
    else
        TRY(next_character(parser, &last));
    if (!is_character || last < first || parser->is_insensitive)
        return unsupported(parser, "a range that this library doesn't have");
    return add_range(parser, first, last);
}

/* From behind the bracket to behind the closing one. */
static llm_status parse_items(Parser *parser, bool *is_negated) {
    *is_negated = skips(parser, "^");
    if (parser->is_insensitive && *is_negated)
        return unsupported(parser, "negated classes in (?i:..)");
    if (follows(parser, "]"))
        return unsupported(parser, "an empty class");
    if (++parser->depth > DEEPEST)
        return unsupported(parser, "classes nested too deep");
    while (!skips(parser, "]")) {
        uint32_t c;
        bool is_character = true;
        if (follows(parser, "&&") || follows(parser, "[:"))
            return unsupported(parser, "an intersection or a POSIX class");
        TRY(next_character(parser, &c));
        if (c == '[') {
            const size_t place = parser->items.count;
            bool is_nested_negated;
            TRY(add_item(parser, (SetItem){SET_NESTED, false, 0, 0}));
            TRY(parse_items(parser, &is_nested_negated));
            SetItem *nested = (SetItem *)parser->items.items + place;
            nested->is_negated = is_nested_negated;
            nested->first = (uint32_t)(parser->items.count - place - 1);
            continue;
        }
        if (c == '\\')
            TRY(parse_escaped(parser, &is_character, &c));
        if (is_character)
            TRY(parse_range(parser, c));
        else if (follows(parser, "-") && !follows(parser, "-]"))
            return unsupported(parser, "a range that begins with a class");
    }
    parser->depth--;
    return LLM_OK;
}

/* Some pairs of letters are equal to one character (as in the German sharp s) where case is
 * ignored: refuse them, and classes beside letters, which may be such a pair. */
static llm_status check_pair(Parser *parser, uint32_t c) {
    if (!parser->is_insensitive)
        return LLM_OK;
    const uint32_t before = parser->previous;
    parser->previous = c == A_CLASS ? c : c | 0x20;
    if ((before && (before == A_CLASS || c == A_CLASS)) ||
        (before == 'f' && strchr("fil", (int)parser->previous)) ||
        (before == 's' && strchr("st", (int)parser->previous)))
        return unsupported(parser, "letters in (?i:..) that form ligatures");
    return LLM_OK;
}

llm_status parse_class(Parser *parser, uint32_t *set) {
    const size_t first = parser->items.count;
    bool is_negated;
    TRY(check_pair(parser, A_CLASS));
    TRY(parse_items(parser, &is_negated));
    return finish_set(parser, first, is_negated, set);
}

llm_status parse_escape(Parser *parser, uint32_t *set) {
    const size_t first = parser->items.count;
    bool is_character;
    uint32_t c;
    TRY(parse_escaped(parser, &is_character, &c));
    if (is_character)
        TRY(add_character(parser, c));
    return finish_set(parser, first, false, set);
}

llm_status parse_literal(Parser *parser, uint32_t *set) {
    const size_t first = parser->items.count;
    uint32_t c;
    TRY(next_character(parser, &c));
    if (c < 0x80)
        TRY(check_pair(parser, c));
    TRY(add_character(parser, c));
    return finish_set(parser, first, false, set);
}

llm_status add_any(Parser *parser, uint32_t *set) {
    const size_t first = parser->items.count;
    TRY(add_range(parser, 0, '\n' - 1));
    TRY(add_range(parser, '\n' + 1, LAST_CODE_POINT));
    return finish_set(parser, first, false, set);
}
