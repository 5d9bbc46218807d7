/* Structures of callers, who may have been compiled with an older header or a newer one. */
#pragma once

#include "failure.h"

#include <string.h>

/* Copy a caller's structure over one of defaults: as much of it as both know. NULL leaves it. */
static inline llm_status options_read(const void *given, void *known, size_t known_size,
                                      llm_error *error) {
    if (!given)
        return LLM_OK;
    size_t size;
    memcpy(&size, given, sizeof size);
    if (size < sizeof size)
        return fail(error, LLM_INVALID_ARGUMENT,
                    "A structure has no size: set its first field to its sizeof.");
    memcpy(known, given, size < known_size ? size : known_size);
    return LLM_OK;
}

#define OPTIONS_READ(given, known, error) options_read(given, &(known), sizeof(known), error)
