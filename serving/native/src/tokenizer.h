/* A tokenizer from a Hugging Face tokenizer.json: byte-pair encoding at byte level (GPT-2, Llama 3,
 * Qwen, DeepSeek, Mistral Nemo) or of characters with byte fallback (Llama 2, Gemma, Mistral).
 *
 * It gives the tokens and the text that the `tokenizers` library does, and refuses to open what it
 * doesn't know. Once open it doesn't change: any number of threads may use it, each with its own
 * scratch.
 */
#pragma once

#include "tokenizer_added.h"
#include "tokenizer_bpe.h"
#include "tokenizer_decoder.h"
#include "tokenizer_normalizer.h"
#include "tokenizer_splitter.h"

#define MOST_FRAME_TOKENS 16

typedef struct {
    Bpe bpe;
    Normalizer normalizer;
    Splitter splitter;
    AddedTokens added;
    Decoder decoder;
    /* The special tokens around a text. */
    uint32_t before[MOST_FRAME_TOKENS], after[MOST_FRAME_TOKENS];
    size_t before_count, after_count;
} Tokenizer;

/* What encoding and decoding need. It grows with the longest text, in a memory of its own. */
typedef struct {
    Memory memory;
    RegexScratch regex;
    NormalizerScratch normalizer;
    SplitterScratch splitter;
    BpeScratch bpe;
    Buffer mended, ids;
    Pieces pieces[2];
} TokenizerScratch;

/* Read a tokenizer.json. All of the tokenizer is in `memory` then; the text isn't needed any more.
 * LLM_UNSUPPORTED if it has parts that this library doesn't have, LLM_DAMAGED if it contradicts
 * itself. */
llm_status tokenizer_open(const char *json, size_t size, Memory *memory,
                          const Tokenizer **tokenizer, llm_error *error);

/* Begin and end using a scratch. It must stay where it is. */
void tokenizer_scratch_begin(TokenizerScratch *scratch, const llm_allocator *allocator);
void tokenizer_scratch_end(TokenizerScratch *scratch);

/* Tokens of a text. What isn't valid UTF-8 counts as U+FFFD, as Python's errors="replace" puts it.
 * `count` receives how many there are; if they are more than `capacity`, LLM_NO_ROOM. */
llm_status tokenizer_encode(const Tokenizer *tokenizer, const char *text, size_t size,
                            bool adds_special_tokens, TokenizerScratch *scratch, llm_token *ids,
                            size_t capacity, size_t *count, llm_error *error);

/* Text of tokens, valid UTF-8, until the scratch is used again. Tokens that there aren't are left
 * out, as are special ones if `skips_special`. */
llm_status tokenizer_decode(const Tokenizer *tokenizer, const llm_token *ids, size_t count,
                            bool skips_special, TokenizerScratch *scratch, const char **text,
                            size_t *size, llm_error *error);

/* Whether a token is special, or there is no such token: streaming leaves it out. */
bool tokenizer_is_silent(const Tokenizer *tokenizer, llm_token id);

/* Whether a token is a byte, of which a character may consist together with others. */
bool tokenizer_is_byte(const Tokenizer *tokenizer, llm_token id);
