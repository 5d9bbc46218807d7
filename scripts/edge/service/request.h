/* What a client sends: a prompt, and in a first line before it how tokens are chosen. */
#pragma once

#include <llm_runtime.h>

typedef struct request {
    const char *prompt;
    size_t length; /* in bytes */
    llm_sampling sampling;
    llm_generation generation; /* its seed and max_new_tokens */
} request;

/* Read a text of `length` bytes that ends with a 0. Without a line of options, tokens are the
 * likeliest. False, if the line has other words than name=number for names that there are. */
bool request_read(const char *text, size_t length, request *read);
