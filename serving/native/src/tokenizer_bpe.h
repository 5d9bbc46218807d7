/* Byte-pair encoding: a word's characters, or bytes, merged pair by pair in the order in which the
 * pairs were learnt. */
#pragma once

#include "buffer.h"
#include "tokenizer_vocabulary.h"

/* Two neighbours and what they become. The lowest rank is merged first. */
typedef struct {
    uint32_t left, right, rank, merged;
} Merge;

typedef struct {
    Vocabulary vocabulary;
    Merge *merges; /* a hash table; free slots have `merged` 0 and `rank` NO_RANK */
    size_t merge_slots;
    bool is_byte_level; /* tokens are spelt with a character for each byte */
    bool has_byte_fallback;
    bool fuses_unknown;
    bool ignores_merges;    /* for words that are tokens */
    uint32_t unknown;       /* or NO_TOKEN */
    uint32_t initial[256];  /* the token of a byte at byte level; otherwise of an ASCII character */
    uint32_t fallback[256]; /* the token of a byte of a character that is no token */
} Bpe;

/* Buffers for bpe_encode. */
typedef struct {
    Buffer symbols, queue, spelling;
} BpeScratch;

/* Read the "model" of a tokenizer.json. */
llm_status bpe_read(JsonValue model, bool is_byte_level, Memory *memory, Bpe *bpe,
                    llm_error *error);

/* Append the tokens of a word to `ids`, uint32_t. */
llm_status bpe_encode(const Bpe *bpe, const char *word, size_t size, BpeScratch *scratch,
                      Buffer *ids, Memory *memory, llm_error *error);

/* The character that spells a byte at byte level, below U+0144. */
uint32_t byte_level_character(unsigned char byte);
