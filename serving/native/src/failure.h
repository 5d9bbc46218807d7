/* Failing with a status and a sentence. */
#pragma once

#include "llm_runtime.h"

/* Write the sentence to `error`, unless that is NULL, and return `status`. */
llm_status fail(llm_error *error, llm_status status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* Return from the function with the status of a call that fails. */
#define TRY(call)                                                                                  \
    do {                                                                                           \
        const llm_status try_status = (call);                                                      \
        if (try_status != LLM_OK)                                                                  \
            return try_status;                                                                     \
    } while (0)
