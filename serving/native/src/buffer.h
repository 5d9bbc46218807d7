/* Arrays that grow. What they have outgrown is freed with the rest of their memory, so all of it is
 * at most twice what they need. */
#pragma once

#include "memory.h"

typedef struct {
    void *items;
    size_t count;
    size_t capacity;
} Buffer;

/* Make room for `more` items after those that are there. `items` isn't NULL then, even for none. */
llm_status buffer_reserve(Buffer *buffer, size_t more, size_t item_bytes, Memory *memory,
                          llm_error *error);

/* Bytes of text. */
llm_status buffer_append(Buffer *buffer, const char *text, size_t size, Memory *memory,
                         llm_error *error);
