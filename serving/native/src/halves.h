/* Floats of 2 bytes made into floats of 4, exactly and in place. */
#pragma once

#include <stddef.h>

/* `values` [count] has halves in the second half of its memory. A float is written behind the last
 * half that it isn't made from. */
void widen_float16(float *values, size_t count);
void widen_bfloat16(float *values, size_t count);
