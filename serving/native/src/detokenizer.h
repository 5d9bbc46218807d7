/* From tokens to text, piece by piece, without half characters and without lost spaces: the pieces
 * of serving/detokenizer.py. */
#pragma once

#include "tokenizer.h"

/* Text of one sequence, as its tokens arrive. The pieces add up to tokenizer_decode of all of them
 * without special ones. */
typedef struct {
    const Tokenizer *tokenizer;
    TokenizerScratch *scratch;
    Memory memory;
    /* The tokens since the last piece, and those of that piece: a decoder treats the first token
     * that it is given differently. */
    Buffer window;
    size_t given;            /* so many tokens of the window, */
    size_t given_characters; /* and so many characters of its text, were returned before */
} Detokenizer;

/* Begin a sequence, and end it. `scratch` may be shared with what isn't used at the same time. */
void detokenizer_begin(Detokenizer *detokenizer, const Tokenizer *tokenizer,
                       TokenizerScratch *scratch, const llm_allocator *allocator);
void detokenizer_end(Detokenizer *detokenizer);

/* Forget the sequence and begin another, with the memory that is there. Its text goes on from a
 * prompt, unless that ends with a special token or within a character: a decoder may strip the
 * space that a text begins with, and such a text doesn't begin there. */
llm_status detokenizer_restart(Detokenizer *detokenizer, const llm_token *prompt, size_t count,
                               llm_error *error);

/* Add a token, and get the text that is now certain: maybe none. It lasts until the scratch is used
 * again. */
llm_status detokenizer_push(Detokenizer *detokenizer, llm_token id, const char **text, size_t *size,
                            llm_error *error);

/* Get the text held back, half characters included; nothing may be pushed after it. */
llm_status detokenizer_finish(Detokenizer *detokenizer, const char **text, size_t *size,
                              llm_error *error);
