/* What follows a linear layer's product, done before its sums are stored. */
#pragma once

#include "gelu.h"
#include "grouped_rows.h"
#include "linear.h"

/* Make room in the caches for the results of `rows` rows. */
static inline void expect_results(const Linear *linear, int64_t row, int64_t rows, int64_t column) {
    for (int64_t r = 0; r < rows; r++)
        for (int i = 0; i < TILE; i += LINE)
            __builtin_prefetch(linear->result + (row + r) * linear->weights.outputs + column + i,
                               1);
}

/* Store sums of `group` rows, a number known when compiling, of which the result has `rows`. */
ALWAYS_INLINE void store_results(const Linear *linear, int64_t row, int64_t rows, int64_t column,
                                 int group, Floats (*sums)[2]) {
    const int64_t outputs = linear->weights.outputs;
    UNROLLED for (int half = 0; half < 2; half++) {
        const int64_t start = column + half * LANES, left = outputs - start;
        const Floats bias = floats_load_some(linear->bias + start, left);
        UNROLLED for (int r = 0; r < group; r++) sums[r][half] = add(sums[r][half], bias);
        if (linear->is_gelu)
            UNROLLED for (int r = 0; r < group; r++) sums[r][half] = exact_gelu_of(sums[r][half]);
        UNROLLED for (int r = 0; r < group; r++) if (r < rows) {
            const int64_t place = (row + r) * outputs + start;
            if (linear->residual)
                sums[r][half] =
                    add(sums[r][half], floats_load_some(linear->residual + place, left));
            floats_store_some(linear->result + place, sums[r][half], left);
        }
    }
}
