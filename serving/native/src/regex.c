/* Matching: depth first, with what is left to try on a stack. */
#include "regex.h"

#include "failure.h"
#include "regex_program.h"
#include "utf8.h"

#define NO_MATCH SIZE_MAX
/* Choices that one match may take back; Oniguruma has the same limit. */
#ifndef REGEX_MOST_RETRIES
#define REGEX_MOST_RETRIES 10000000
#endif

/* Where to go on if what is being tried fails: at `step`, from `at`, and from each character before
 * it down to `lowest`. */
typedef struct {
    const Step *step;
    size_t at, lowest;
} Choice;

typedef struct {
    const Regex *regex;
    const char *text;
    size_t size;
    RegexScratch *scratch;
    size_t retries;
    llm_error *error;
} Matcher;

static size_t before(const char *text, size_t at) {
    do
        at--;
    while (((unsigned char)text[at] & 0xc0) == 0x80);
    return at;
}

/* The bytes of the character at `at` if it is in the set, or 0. */
static inline size_t take(const Matcher *matcher, const CharacterSet *set, size_t at) {
    const unsigned char c = (unsigned char)matcher->text[at];
    if (c < 0x80)
        return character_set_has_ascii(set, c);
    uint32_t code_point;
    const size_t taken = utf8_read(matcher->text + at, matcher->size - at, &code_point);
    return character_set_has_other(set, code_point) ? taken : 0;
}

static bool is_word_at(const Matcher *matcher, size_t at) {
    if (at >= matcher->size)
        return false;
    uint32_t code_point;
    utf8_read(matcher->text + at, matcher->size - at, &code_point);
    return is_word_character(code_point);
}

static llm_status push(Matcher *matcher, const Step *step, size_t at, size_t lowest) {
    Buffer *choices = &matcher->scratch->choices;
    TRY(buffer_reserve(choices, 1, sizeof(Choice), matcher->scratch->memory, matcher->error));
    ((Choice *)choices->items)[choices->count++] = (Choice){step, at, lowest};
    return LLM_OK;
}

/* Go back to the last choice above `base`; false if there is none. */
static bool pop(Matcher *matcher, size_t base, const Step **step, size_t *at) {
    Buffer *choices = &matcher->scratch->choices;
    if (choices->count == base)
        return false;
    Choice *choice = (Choice *)choices->items + choices->count - 1;
    *step = choice->step;
    *at = choice->at;
    if (choice->at > choice->lowest)
        choice->at = before(matcher->text, choice->at);
    else
        choices->count--;
    return true;
}

/* Take as many of a set's characters as there are. */
static llm_status take_set(Matcher *matcher, const Step *step, size_t *at, bool *is_match) {
    const CharacterSet *set = &matcher->regex->sets[step->set];
    size_t end = *at, lowest = *at;
    uint32_t count = 0;
    for (size_t taken; count < step->most && end < matcher->size; count++, end += taken) {
        if (count == step->least)
            lowest = end;
        taken = take(matcher, set, end);
        if (!taken)
            break;
    }
    *is_match = count >= step->least;
    *at = end;
    if (*is_match && count > step->least && !step->is_possessive)
        return push(matcher, step + 1, before(matcher->text, end), lowest);
    return LLM_OK;
}

/* Whether a step that takes no text holds. */
static bool holds(const Matcher *matcher, const Step *step, size_t at) {
    const char *text = matcher->text;
    const size_t size = matcher->size;
    switch (step->kind) {
    case STEP_BEHIND: {
        const CharacterSet *set = &matcher->regex->sets[step->set];
        return (at > 0 && take(matcher, set, before(text, at))) != step->is_negated;
    }
    case STEP_LINE_START:
        return at == 0 || (text[at - 1] == '\n' && at < size);
    case STEP_LINE_END:
        return at == size || text[at] == '\n';
    case STEP_TEXT_START:
        return at == 0;
    case STEP_TEXT_END:
        return at == size;
    default:
        return ((at > 0 && is_word_at(matcher, before(text, at))) != is_word_at(matcher, at)) !=
               step->is_negated;
    }
}

/* Match from a step to its end. `*end` is NO_MATCH if that fails. */
static llm_status run(Matcher *matcher, const Step *step, size_t at, size_t *end) {
    const size_t base = matcher->scratch->choices.count;
    for (;;) {
        bool is_match = true;
        switch (step->kind) {
        case STEP_SET:
            TRY(take_set(matcher, step, &at, &is_match));
            step++;
            break;
        case STEP_SPLIT:
            TRY(push(matcher, step + step->target, at, at));
            step++;
            break;
        case STEP_JUMP:
            step += step->target;
            break;
        case STEP_AHEAD: {
            size_t ahead;
            TRY(run(matcher, step + 1, at, &ahead));
            is_match = (ahead != NO_MATCH) != step->is_negated;
            step += step->target;
            break;
        }
        case STEP_END:
            matcher->scratch->choices.count = base;
            *end = at;
            return LLM_OK;
        default:
            is_match = holds(matcher, step, at);
            step++;
        }
        if (is_match)
            continue;
        if (++matcher->retries > REGEX_MOST_RETRIES)
            return fail(matcher->error, LLM_UNSUPPORTED,
                        "The tokenizer's pattern takes too long on this text.");
        if (!pop(matcher, base, &step, &at)) {
            *end = NO_MATCH;
            return LLM_OK;
        }
    }
}

llm_status regex_find(const Regex *regex, const char *text, size_t size, size_t from,
                      RegexScratch *scratch, Span *found, llm_error *error) {
    Matcher matcher = {regex, text, size, scratch, 0, error};
    scratch->choices.count = 0;
    for (size_t at = from; at < size; at++) {
        size_t end;
        if (!regex->can_begin[(unsigned char)text[at]])
            continue;
        matcher.retries = 0;
        TRY(run(&matcher, regex->steps, at, &end));
        if (end != NO_MATCH) {
            *found = (Span){at, end};
            return LLM_OK;
        }
    }
    *found = (Span){size, size};
    return LLM_OK;
}
