/* What a regular expression is compiled to: shared by its compiler and its matcher. */
#pragma once

#include "character_set.h"
#include "regex.h"

#define UNBOUNDED UINT32_MAX

typedef enum {
    STEP_SET,    /* as many of a set's characters as possible, from `least` to `most` */
    STEP_SPLIT,  /* go on behind it, or else at `target` */
    STEP_JUMP,   /* go on at `target` */
    STEP_AHEAD,  /* the steps up to the next end match from here, then go on at `target` */
    STEP_BEHIND, /* the character before is in the set */
    STEP_LINE_START,
    STEP_LINE_END,
    STEP_TEXT_START,
    STEP_TEXT_END,
    STEP_WORD_BOUNDARY,
    STEP_END,
} StepKind;

typedef struct {
    StepKind kind;
    bool is_possessive; /* of a set: it never gives back */
    bool is_negated;    /* of AHEAD, BEHIND and WORD_BOUNDARY */
    uint32_t set;
    uint32_t least, most;
    int32_t target; /* relative to this step, so that a stretch of steps can be moved */
} Step;

struct Regex {
    const Step *steps;
    const CharacterSet *sets;
    bool can_begin[256]; /* whether a match can begin with a byte */
};
