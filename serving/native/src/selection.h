/* Finding the highest of many floats, and sorting by them, in place. */
#pragma once

#include <stddef.h>
#include <stdint.h>

/* The index of the highest value, the first of equal ones; that of the first NaN, if there is one.
 */
size_t index_of_highest(const float *values, size_t count);

/* The k-th highest value, 1 <= k <= count; reorders them. There must be no NaN. */
float kth_highest(float *values, size_t count, size_t k);

/* Sort ids by their scores, the lowest first; of equal scores the higher id comes first. */
void sort_ascending(uint32_t *ids, size_t count, const float *scores);
