/* From tokens to text: what is done to each token's text, and to all of it. */
#pragma once

#include "tokenizer_pattern.h"
#include "tokenizer_splitter.h"

#define MOST_DECODERS 8

typedef enum {
    DECODE_BYTE_LEVEL,    /* characters are bytes */
    DECODE_BYTE_FALLBACK, /* tokens <0x00> are bytes */
    DECODE_REPLACE,
    DECODE_STRIP,
    DECODE_FUSE,
    DECODE_METASPACE,
} DecoderKind;

typedef struct {
    DecoderKind kind;
    Pattern pattern; /* of REPLACE; its text is the mark of METASPACE, what STRIP takes away */
    const char *content;
    size_t content_size;
    size_t from_start, from_end; /* of STRIP: how many at most */
    bool drops_first;            /* of METASPACE: the first token's marks */
} DecoderStep;

typedef struct {
    DecoderStep steps[MOST_DECODERS];
    size_t count;
    bool is_missing; /* tokens are joined by spaces then */
} Decoder;

/* Texts of tokens, one behind the other. */
typedef struct {
    Buffer text;
    Buffer ends; /* size_t */
} Pieces;

/* Read the "decoder" of a tokenizer.json, which may be null. */
llm_status decoder_read(JsonValue json, Memory *memory, Decoder *decoder, llm_error *error);

/* Whether a token's text stands for a byte, of which a character may consist together with others.
 */
bool decoder_takes_as_byte(const Decoder *decoder, const char *text, size_t size);

llm_status pieces_add(Pieces *pieces, const char *text, size_t size, Memory *memory,
                      llm_error *error);

/* Decode the tokens' texts, which are `pieces[0]`; `pieces[1]` is for work. The text is UTF-8. */
llm_status decoder_run(const Decoder *decoder, Pieces pieces[2], RegexScratch *scratch,
                       const char **text, size_t *size, llm_error *error);
