/* From a regular expression to the steps that match it.
 *
 * A stretch of steps refers to its own steps by distance, so a step can be put before it when what
 * follows in the pattern (| or a quantifier) asks for one.
 */
#include <string.h>

#include "regex_parser.h"

#define DEEPEST 32
#define MOST_STEPS 4096
#define MOST_REPEATS 1000

llm_status unsupported(Parser *parser, const char *what) {
    return fail(parser->error, LLM_UNSUPPORTED,
                "The tokenizer splits text by a pattern with %s, at byte %zu of %.*s", what,
                parser->at, (int)(parser->size < 300 ? parser->size : 300), parser->pattern);
}

/* ---- Steps ---- */

static Step *step_at(Parser *parser, size_t place) { return (Step *)parser->steps.items + place; }

static llm_status insert(Parser *parser, size_t place, Step step) {
    if (parser->steps.count == MOST_STEPS)
        return unsupported(parser, "too many parts");
    TRY(buffer_reserve(&parser->steps, 1, sizeof step, parser->memory, parser->error));
    memmove(step_at(parser, place + 1), step_at(parser, place),
            (parser->steps.count++ - place) * sizeof step);
    *step_at(parser, place) = step;
    return LLM_OK;
}

static llm_status append(Parser *parser, Step step) {
    return insert(parser, parser->steps.count, step);
}

/* Steps that go on at a place which isn't there yet: each holds the place of the one before. */
#define NO_STEPS (-1)

static void end_here(Parser *parser, int32_t pending) {
    while (pending != NO_STEPS) {
        Step *step = step_at(parser, (size_t)pending);
        const int32_t before = step->target;
        step->target = (int32_t)parser->steps.count - pending;
        pending = before;
    }
}

/* ---- Atoms ---- */

/* What is read in all of these: `*least` is how many characters it matches at least. */
static llm_status parse_alternatives(Parser *parser, size_t *least);

static llm_status parse_group(Parser *parser, size_t *least) {
    if (++parser->depth > DEEPEST)
        return unsupported(parser, "groups nested too deep");
    TRY(parse_alternatives(parser, least));
    parser->depth--;
    return skips(parser, ")") ? LLM_OK : unsupported(parser, "a group without end");
}

static llm_status parse_ahead(Parser *parser, bool is_negated) {
    const size_t place = parser->steps.count;
    size_t least;
    TRY(append(parser, (Step){.kind = STEP_AHEAD, .is_negated = is_negated}));
    TRY(parse_group(parser, &least));
    TRY(append(parser, (Step){.kind = STEP_END}));
    step_at(parser, place)->target = (int32_t)(parser->steps.count - place);
    return LLM_OK;
}

static bool is_one_character(Parser *parser, size_t place) {
    const Step *step = step_at(parser, place);
    return parser->steps.count == place + 1 && step->kind == STEP_SET && step->least == 1 &&
           step->most == 1;
}

static llm_status parse_behind(Parser *parser, bool is_negated) {
    const size_t place = parser->steps.count;
    size_t least;
    TRY(parse_group(parser, &least));
    if (!is_one_character(parser, place))
        return unsupported(parser, "a look-behind of more than one character");
    step_at(parser, place)->kind = STEP_BEHIND;
    step_at(parser, place)->is_negated = is_negated;
    return LLM_OK;
}

/* From behind the parenthesis. */
static llm_status parse_parenthesis(Parser *parser, size_t *least) {
    *least = 0;
    if (skips(parser, "?="))
        return parse_ahead(parser, false);
    if (skips(parser, "?!"))
        return parse_ahead(parser, true);
    if (skips(parser, "?<="))
        return parse_behind(parser, false);
    if (skips(parser, "?<!"))
        return parse_behind(parser, true);
    if (skips(parser, "?i:")) {
        const bool was_insensitive = parser->is_insensitive;
        parser->is_insensitive = true;
        TRY(parse_group(parser, least));
        parser->is_insensitive = was_insensitive;
        return LLM_OK;
    }
    if (!skips(parser, "?:") && follows(parser, "?"))
        return unsupported(parser, "a kind of group that this library doesn't have");
    return parse_group(parser, least);
}

/* Whether an escape that takes no text comes next; then its step is added. */
static llm_status parse_boundary(Parser *parser, bool *is_boundary) {
    Step step = {.kind = STEP_WORD_BOUNDARY};
    *is_boundary = true;
    if (skips(parser, "\\B"))
        step.is_negated = true;
    else if (skips(parser, "\\A"))
        step.kind = STEP_TEXT_START;
    else if (skips(parser, "\\z"))
        step.kind = STEP_TEXT_END;
    else if (skips(parser, "^"))
        step.kind = STEP_LINE_START;
    else if (skips(parser, "$"))
        step.kind = STEP_LINE_END;
    else
        *is_boundary = skips(parser, "\\b");
    return *is_boundary ? append(parser, step) : LLM_OK;
}

static llm_status parse_atom(Parser *parser, size_t *least) {
    if (skips(parser, "("))
        return parse_parenthesis(parser, least);
    bool is_boundary;
    *least = 0;
    TRY(parse_boundary(parser, &is_boundary));
    if (is_boundary)
        return LLM_OK;
    if (follows(parser, "*") || follows(parser, "+") || follows(parser, "?") ||
        follows(parser, "{"))
        return unsupported(parser, "a quantifier of nothing");
    Step step = {.kind = STEP_SET, .least = 1, .most = 1};
    if (skips(parser, "["))
        TRY(parse_class(parser, &step.set));
    else if (skips(parser, "\\"))
        TRY(parse_escape(parser, &step.set));
    else if (skips(parser, "."))
        TRY(add_any(parser, &step.set));
    else
        TRY(parse_literal(parser, &step.set));
    *least = 1;
    return append(parser, step);
}

/* ---- Quantifiers ---- */

typedef struct {
    uint32_t least, most;
    bool is_possessive;
} Quantifier;

static bool parse_number(Parser *parser, uint32_t *number) {
    const size_t start = parser->at;
    for (*number = 0; !is_at_end(parser); parser->at++) {
        const char c = parser->pattern[parser->at];
        if (c < '0' || c > '9' || *number > MOST_REPEATS)
            break;
        *number = *number * 10 + (uint32_t)(c - '0');
    }
    return parser->at > start && *number <= MOST_REPEATS;
}

/* From behind the brace. */
static llm_status parse_counts(Parser *parser, Quantifier *quantifier) {
    const bool has_least = parse_number(parser, &quantifier->least);
    quantifier->most = quantifier->least;
    if (has_least && skips(parser, ",") && !parse_number(parser, &quantifier->most))
        quantifier->most = UNBOUNDED;
    if (!has_least || !skips(parser, "}") || quantifier->most < quantifier->least ||
        quantifier->most == 0)
        return unsupported(parser, "braces that this library doesn't understand");
    return LLM_OK;
}

/* Read a quantifier if there is one. */
static llm_status parse_quantifier(Parser *parser, Quantifier *quantifier) {
    *quantifier = (Quantifier){1, 1, false};
    if (skips(parser, "{"))
        TRY(parse_counts(parser, quantifier));
    else if (skips(parser, "?"))
        *quantifier = (Quantifier){0, 1, skips(parser, "+")};
    else if (skips(parser, "*"))
        *quantifier = (Quantifier){0, UNBOUNDED, skips(parser, "+")};
    else if (skips(parser, "+"))
        *quantifier = (Quantifier){1, UNBOUNDED, skips(parser, "+")};
    else
        return LLM_OK;
    if (follows(parser, "?") || follows(parser, "*") || follows(parser, "+") ||
        follows(parser, "{"))
        return unsupported(parser, "a lazy quantifier or a second one");
    return LLM_OK;
}

/* Repeat a group that has been read once: its steps begin at `start`, its text is at `from`. */
static llm_status repeat(Parser *parser, size_t start, size_t from, Quantifier quantifier) {
    const size_t end = parser->at;
    const bool is_unbounded = quantifier.most == UNBOUNDED;
    const uint32_t copies = !is_unbounded      ? quantifier.most
                            : quantifier.least ? quantifier.least
                                               : 1;
    int32_t pending = NO_STEPS;
    size_t last = start;
    for (uint32_t copy = 0; copy < copies; copy++) {
        if (copy > 0) {
            size_t least;
            last = parser->steps.count;
            parser->at = from;
            TRY(parse_atom(parser, &least));
        }
        if (copy >= quantifier.least) {
            TRY(insert(parser, last, (Step){.kind = STEP_SPLIT, .target = pending}));
            pending = (int32_t)last;
        }
    }
    parser->at = end;
    if (is_unbounded) {
        if (quantifier.least > 0)
            TRY(append(parser, (Step){.kind = STEP_SPLIT, .target = 2}));
        const int32_t back = (int32_t)last - (int32_t)parser->steps.count;
        TRY(append(parser, (Step){.kind = STEP_JUMP, .target = back}));
    }
    end_here(parser, pending);
    return LLM_OK;
}

static llm_status parse_quantified(Parser *parser, size_t *least) {
    const size_t start = parser->steps.count, from = parser->at;
    Quantifier quantifier;
    size_t length;
    TRY(parse_atom(parser, &length));
    TRY(parse_quantifier(parser, &quantifier));
    *least = length * quantifier.least;
    if (quantifier.least == 1 && quantifier.most == 1)
        return LLM_OK;
    parser->previous = 0;
    if (is_one_character(parser, start)) {
        Step *step = step_at(parser, start);
        step->least = quantifier.least;
        step->most = quantifier.most;
        step->is_possessive = quantifier.is_possessive;
        return LLM_OK;
    }
    if (length == 0 || quantifier.is_possessive)
        return unsupported(parser, "a quantifier that this library doesn't have for groups");
    return repeat(parser, start, from, quantifier);
}

/* ---- The whole ---- */

static llm_status parse_sequence(Parser *parser, size_t *least) {
    *least = 0;
    parser->previous = 0;
    while (!is_at_end(parser) && !follows(parser, "|") && !follows(parser, ")")) {
        size_t length;
        TRY(parse_quantified(parser, &length));
        *least = *least + length < UNBOUNDED ? *least + length : UNBOUNDED;
    }
    return LLM_OK;
}

static llm_status parse_alternatives(Parser *parser, size_t *least) {
    int32_t pending = NO_STEPS;
    *least = SIZE_MAX;
    for (;;) {
        const size_t start = parser->steps.count;
        size_t length;
        TRY(parse_sequence(parser, &length));
        *least = length < *least ? length : *least;
        if (!skips(parser, "|"))
            break;
        const int32_t distance = (int32_t)(parser->steps.count - start) + 2;
        TRY(insert(parser, start, (Step){.kind = STEP_SPLIT, .target = distance}));
        TRY(append(parser, (Step){.kind = STEP_JUMP, .target = pending}));
        pending = (int32_t)parser->steps.count - 1;
    }
    end_here(parser, pending);
    return LLM_OK;
}

/* Mark the bytes that a match can begin with from a step on; `seen` are the steps marked already.
 */
static void mark_beginnings(const Regex *regex, size_t place, bool *seen, bool *can_begin) {
    while (!seen[place]) {
        const Step *step = &regex->steps[place];
        seen[place] = true;
        if (step->kind == STEP_END)
            return;
        if (step->kind == STEP_SET) {
            const CharacterSet *set = &regex->sets[step->set];
            for (unsigned byte = 0; byte < 0x80; byte++)
                can_begin[byte] |= character_set_has_ascii(set, (unsigned char)byte);
            bool is_ascii = !set->is_negated;
            for (size_t i = 0; i < set->count; i++)
                is_ascii &= set->items[i].kind == SET_RANGE && set->items[i].last < 0x80;
            for (unsigned byte = 0xc2; byte < 0xf5; byte++)
                can_begin[byte] |= !is_ascii;
            if (step->least > 0)
                return;
        }
        if (step->kind == STEP_SPLIT)
            mark_beginnings(regex, place + (size_t)step->target, seen, can_begin);
        const bool is_elsewhere = step->kind == STEP_JUMP || step->kind == STEP_AHEAD;
        place += is_elsewhere ? (size_t)(ptrdiff_t)step->target : 1;
    }
}

llm_status regex_compile(const char *pattern, size_t size, Memory *memory, const Regex **regex,
                         llm_error *error) {
    Parser parser = {.pattern = pattern, .size = size, .memory = memory, .error = error};
    Regex *compiled;
    size_t least;
    bool *seen;
    TRY(memory_take(memory, 1, sizeof *compiled, &compiled, error));
    TRY(parse_alternatives(&parser, &least));
    if (!is_at_end(&parser))
        return unsupported(&parser, "a parenthesis too many");
    if (least == 0)
        return unsupported(&parser, "matches of no text");
    TRY(append(&parser, (Step){.kind = STEP_END}));
    compiled->steps = parser.steps.items;
    compiled->sets = parser.sets.items;
    TRY(memory_take(memory, parser.steps.count, sizeof *seen, &seen, error));
    mark_beginnings(compiled, 0, seen, compiled->can_begin);
    *regex = compiled;
    return LLM_OK;
}
