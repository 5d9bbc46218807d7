/* How tokenizers split a text into words, of which each is encoded on its own. */
#pragma once

#include "tokenizer_pattern.h"

#define MOST_SPLITTERS 16

typedef enum {
    SPLIT_PATTERN,
    SPLIT_METASPACE,    /* spaces become a mark, which is put at the beginning too */
    SPLIT_PREFIX_SPACE, /* a space is put at the beginning */
} SplitterKind;

/* Where what a pattern finds goes. */
typedef enum {
    SPLIT_ISOLATED,
    SPLIT_REMOVED,
    SPLIT_CONTIGUOUS, /* neighbours become one word */
    SPLIT_WITH_PREVIOUS,
    SPLIT_WITH_NEXT,
} SplitBehavior;

typedef enum { PREPEND_ALWAYS, PREPEND_FIRST, PREPEND_NEVER } PrependScheme;

typedef struct {
    SplitterKind kind;
    Pattern pattern; /* of METASPACE: the mark */
    SplitBehavior behavior;
    bool is_inverted; /* what lies between takes the place of what is found */
    PrependScheme scheme;
} SplitterStep;

typedef struct {
    SplitterStep steps[MOST_SPLITTERS];
    size_t count;
    bool is_byte_level; /* words are bytes then */
} Splitter;

typedef struct {
    Buffer texts[MOST_SPLITTERS]; /* of the steps that change their text */
} SplitterScratch;

/* Gets each word, while it lasts. */
typedef struct {
    llm_status (*take)(void *user_data, const char *word, size_t size);
    void *user_data;
} WordTaker;

/* Read the "pre_tokenizer" of a tokenizer.json, which may be null. */
llm_status splitter_read(JsonValue json, Memory *memory, Splitter *splitter, llm_error *error);

PrependScheme read_prepend_scheme(JsonValue json);

/* Give all words of a text. `is_first` says whether the text is the beginning of what is encoded.
 */
llm_status splitter_run(const Splitter *splitter, const char *text, size_t size, bool is_first,
                        SplitterScratch *scratch, RegexScratch *regex_scratch, WordTaker taker,
                        llm_error *error);
