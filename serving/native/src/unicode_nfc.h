/* Unicode's normalisation form C (UAX #15), with the characters that tokenizers' normaliser knows.
 */
#pragma once

#include "buffer.h"

/* How many bytes at the beginning of a valid UTF-8 text are surely the same in form C, whatever
 * follows: all of them in most texts. */
size_t nfc_stable_size(const char *text, size_t size);

/* Append the form C of a valid UTF-8 text to `out`. `points` is for work in between. */
llm_status nfc_append(const char *text, size_t size, Buffer *points, Buffer *out, Memory *memory,
                      llm_error *error);
