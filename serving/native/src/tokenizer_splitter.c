#include "tokenizer_splitter.h"

#include <string.h>

#include "failure.h"

typedef struct {
    const Splitter *splitter;
    SplitterScratch *scratch;
    RegexScratch *regex_scratch;
    WordTaker taker;
    llm_error *error;
} Splitting;

/* Go through the steps from one on: each gives its pieces to the next, the last to the taker. */
static llm_status split_from(const Splitting *splitting, size_t place, const char *text,
                             size_t size, bool is_first);

/* ---- Splitting by a pattern ---- */

/* The piece that is being put together, which may still grow. */
typedef struct {
    Span span;
    bool is_found;
} Piece;

/* Whether a neighbour becomes part of the piece before. */
static bool joins(SplitBehavior behavior, Piece piece, bool is_found) {
    switch (behavior) {
    case SPLIT_CONTIGUOUS:
        return piece.is_found == is_found;
    case SPLIT_WITH_PREVIOUS:
        return !piece.is_found && is_found;
    case SPLIT_WITH_NEXT:
        return piece.is_found && !is_found;
    default:
        return false;
    }
}

static llm_status give(const Splitting *splitting, size_t place, const char *text, Piece piece,
                       bool is_first) {
    const SplitterStep *step = &splitting->splitter->steps[place];
    const Span span = piece.span;
    if (span.start == span.end || (step->behavior == SPLIT_REMOVED && piece.is_found))
        return LLM_OK;
    return split_from(splitting, place + 1, text + span.start, span.end - span.start,
                      is_first && span.start == 0);
}

/* Add what was found, or lies between; the piece before is given away if it doesn't grow. */
static llm_status add(const Splitting *splitting, size_t place, const char *text, Piece *piece,
                      Span span, bool is_found, bool is_first) {
    const SplitterStep *step = &splitting->splitter->steps[place];
    if (span.start == span.end)
        return LLM_OK;
    is_found ^= step->is_inverted;
    if (piece->span.end > piece->span.start && joins(step->behavior, *piece, is_found)) {
        piece->span.end = span.end;
        piece->is_found = is_found;
        return LLM_OK;
    }
    TRY(give(splitting, place, text, *piece, is_first));
    *piece = (Piece){span, is_found};
    return LLM_OK;
}

static llm_status split_by_pattern(const Splitting *splitting, size_t place, const char *text,
                                   size_t size, bool is_first) {
    const SplitterStep *step = &splitting->splitter->steps[place];
    Piece piece = {0};
    for (size_t at = 0; at < size;) {
        Span found;
        TRY(pattern_find(&step->pattern, text, size, at, splitting->regex_scratch, &found,
                         splitting->error));
        TRY(add(splitting, place, text, &piece, (Span){at, found.start}, false, is_first));
        TRY(add(splitting, place, text, &piece, found, true, is_first));
        at = found.end;
    }
    return give(splitting, place, text, piece, is_first);
}

/* ---- Changing the text ---- */

static bool begins_with(const char *text, size_t size, const char *beginning, size_t length) {
    return size >= length && memcmp(text, beginning, length) == 0;
}

static llm_status mark_spaces(const Splitting *splitting, const SplitterStep *step,
                              const char *text, size_t size, bool is_first, Buffer *out) {
    Memory *memory = splitting->regex_scratch->memory;
    const char *mark = step->pattern.text;
    const size_t mark_size = step->pattern.size;
    const bool is_prepended =
        step->scheme == PREPEND_ALWAYS || (step->scheme == PREPEND_FIRST && is_first);
    if (is_prepended && text[0] != ' ' && !begins_with(text, size, mark, mark_size))
        TRY(buffer_append(out, mark, mark_size, memory, splitting->error));
    while (size > 0) {
        const char *space = memchr(text, ' ', size);
        const size_t length = space ? (size_t)(space - text) : size;
        TRY(buffer_append(out, text, length, memory, splitting->error));
        if (space)
            TRY(buffer_append(out, mark, mark_size, memory, splitting->error));
        text += length + (space != NULL);
        size -= length + (space != NULL);
    }
    return LLM_OK;
}

static llm_status split_from(const Splitting *splitting, size_t place, const char *text,
                             size_t size, bool is_first) {
    if (place == splitting->splitter->count)
        return splitting->taker.take(splitting->taker.user_data, text, size);
    const SplitterStep *step = &splitting->splitter->steps[place];
    if (step->kind == SPLIT_PATTERN)
        return split_by_pattern(splitting, place, text, size, is_first);
    Buffer *out = &splitting->scratch->texts[place];
    out->count = 0;
    if (step->kind == SPLIT_METASPACE) {
        TRY(mark_spaces(splitting, step, text, size, is_first, out));
    } else {
        Memory *memory = splitting->regex_scratch->memory;
        if (text[0] != ' ')
            TRY(buffer_append(out, " ", 1, memory, splitting->error));
        TRY(buffer_append(out, text, size, memory, splitting->error));
    }
    return split_from(splitting, place + 1, out->items, out->count, is_first);
}

llm_status splitter_run(const Splitter *splitter, const char *text, size_t size, bool is_first,
                        SplitterScratch *scratch, RegexScratch *regex_scratch, WordTaker taker,
                        llm_error *error) {
    const Splitting splitting = {splitter, scratch, regex_scratch, taker, error};
    return size ? split_from(&splitting, 0, text, size, is_first) : LLM_OK;
}

/* ---- Reading ---- */

/* Steps that one pre-tokenizer becomes. */
#define MOST_ADDED 2

static SplitterStep *add_step(Splitter *splitter) { return &splitter->steps[splitter->count++]; }

/* Whether a member is true; where it isn't there, `otherwise`. */
static bool is_true(JsonValue json, const char *name, bool otherwise) {
    const JsonType type = json_type(json_member(json, name));
    return type == JSON_ABSENT ? otherwise : type == JSON_TRUE;
}

static llm_status read_split(JsonValue json, Memory *memory, SplitterStep *step, llm_error *error) {
    static const char *const names[] = {"Isolated", "Removed", "Contiguous", "MergedWithPrevious",
                                        "MergedWithNext"};
    size_t behavior = 0;
    while (behavior < 5 && !json_string_is(json_member(json, "behavior"), names[behavior]))
        behavior++;
    if (behavior == 5)
        return fail(error, LLM_DAMAGED, "The tokenizer splits text in an unknown way.");
    step->behavior = (SplitBehavior)behavior;
    step->is_inverted = is_true(json, "invert", false);
    return pattern_read(json_member(json, "pattern"), memory, &step->pattern, error);
}

static llm_status read_byte_level(JsonValue json, Memory *memory, Splitter *splitter,
                                  llm_error *error) {
    static const char words[] =
        "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";
    splitter->is_byte_level = true;
    if (is_true(json, "add_prefix_space", true))
        add_step(splitter)->kind = SPLIT_PREFIX_SPACE;
    if (!is_true(json, "use_regex", true))
        return LLM_OK;
    SplitterStep *step = add_step(splitter);
    step->pattern.kind = PATTERN_REGEX;
    return regex_compile(words, sizeof words - 1, memory, &step->pattern.regex, error);
}

PrependScheme read_prepend_scheme(JsonValue json) {
    const JsonValue scheme = json_member(json, "prepend_scheme");
    if (json_type(scheme) != JSON_STRING) /* as older files say it */
        return is_true(json, "add_prefix_space", true) ? PREPEND_ALWAYS : PREPEND_NEVER;
    return json_string_is(scheme, "first")   ? PREPEND_FIRST
           : json_string_is(scheme, "never") ? PREPEND_NEVER
                                             : PREPEND_ALWAYS;
}

static llm_status read_metaspace(JsonValue json, Memory *memory, Splitter *splitter,
                                 llm_error *error) {
    SplitterStep *marks = add_step(splitter);
    marks->kind = SPLIT_METASPACE;
    marks->scheme = read_prepend_scheme(json);
    TRY(read_text(json_member(json, "replacement"), memory, &marks->pattern.text,
                  &marks->pattern.size, error));
    if (!marks->pattern.size)
        return fail(error, LLM_DAMAGED, "The tokenizer's mark for spaces is empty.");
    if (!is_true(json, "split", true))
        return LLM_OK;
    SplitterStep *step = add_step(splitter);
    step->pattern = marks->pattern;
    step->behavior = SPLIT_WITH_NEXT;
    return LLM_OK;
}

llm_status splitter_read(JsonValue json, Memory *memory, Splitter *splitter, llm_error *error) {
    const JsonValue type = json_member(json, "type");
    if (json_type(json) == JSON_ABSENT || json_type(json) == JSON_NULL)
        return LLM_OK;
    if (splitter->is_byte_level)
        return fail(error, LLM_UNSUPPORTED, "The tokenizer splits text after turning it to bytes.");
    if (json_string_is(type, "Sequence")) {
        /* The reader's limit of depth is this recursion's. */
        JsonItems items = json_items(json_member(json, "pretokenizers"));
        while (json_next(&items))
            TRY(splitter_read(items.value, memory, splitter, error));
        return LLM_OK;
    }
    if (splitter->count + MOST_ADDED > MOST_SPLITTERS)
        return fail(error, LLM_UNSUPPORTED, "The tokenizer splits text in too many steps.");
    if (json_string_is(type, "ByteLevel"))
        return read_byte_level(json, memory, splitter, error);
    if (json_string_is(type, "Metaspace"))
        return read_metaspace(json, memory, splitter, error);
    SplitterStep *step = add_step(splitter);
    if (json_string_is(type, "Split"))
        return read_split(json, memory, step, error);
    if (json_string_is(type, "Digits")) {
        step->pattern.kind = PATTERN_DIGIT;
        step->behavior =
            is_true(json, "individual_digits", false) ? SPLIT_ISOLATED : SPLIT_CONTIGUOUS;
        return LLM_OK;
    }
    return fail(error, LLM_UNSUPPORTED,
                "The native runtime's tokenizer splits text by Split, ByteLevel, Metaspace and "
                "Digits only, and this bundle's has another pre-tokenizer: use the Python "
                "runtime, or token ids.");
}
