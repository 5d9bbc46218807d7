#include "failure.h"

#include <stdarg.h>
#include <stdio.h>

llm_status fail(llm_error *error, llm_status status, const char *format, ...) {
    if (error) {
        va_list values;
        va_start(values, format);
        vsnprintf(error->message, sizeof error->message, format, values);
        va_end(values);
    }
    return status;
}
