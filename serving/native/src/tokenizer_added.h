/* Tokens that are found in a text before it is split: special ones, and others that were added. */
#pragma once

#include "tokenizer_normalizer.h"
#include "tokenizer_vocabulary.h"

typedef struct {
    const char *text; /* normalized, if it is found in normalized text */
    size_t size;
    uint32_t id;
    bool is_special;
    bool is_changed;     /* normalization changes its text: then decoding doesn't skip it */
    bool is_single_word; /* only where no word character is beside it */
    bool strips_left, strips_right; /* spaces beside it belong to it */
    bool is_normalized;             /* found in normalized text, as it is when normalized */
} AddedToken;

/* A tree of the bytes of tokens. */
typedef struct {
    uint32_t child, sibling; /* 0: none */
    uint32_t token;          /* its place + 1, or 0 */
    unsigned char byte;
} TrieNode;

typedef struct {
    Buffer nodes; /* the first is the root */
    bool can_begin[256];
} Trie;

typedef struct {
    AddedToken *tokens;
    const AddedToken **by_id; /* in order of their ids */
    size_t count;
    Trie raw, normalized;
} AddedTokens;

/* Where a search in a text is. */
typedef struct {
    size_t next;  /* where to search on */
    size_t given; /* where the last token ended, spaces included */
} AddedCursor;

/* Read the "added_tokens" of a tokenizer.json. `scratch` is used meanwhile. */
llm_status added_tokens_read(JsonValue json, const Vocabulary *vocabulary,
                             const Normalizer *normalizer, NormalizerScratch *scratch,
                             RegexScratch *regex_scratch, Memory *memory, AddedTokens *added,
                             llm_error *error);

/* Find the next token: the leftmost, and the longest of those. NULL if there is none. */
const AddedToken *added_tokens_next(const AddedTokens *added, const Trie *trie, const char *text,
                                    size_t size, AddedCursor *cursor, Span *found);

/* The added token of an id, or NULL. */
const AddedToken *added_token_of(const AddedTokens *added, uint64_t id);
