/* Products of a few rows of activations with weights as they are stored, lanes along a row. */
#pragma once

#include "product.h"
#include "rounding.h"
#include "vectors.h"

#define FEW 4      /* rows, and columns, that are multiplied at once */
#define AHEAD 4096 /* bytes of weights that are fetched ahead of their use */

/* Numbers of weights in a vector. */
static inline int64_t unit_of(int bits) { return VECTOR * 8 / bits; }

/* Where a column's weights start. */
typedef struct {
    int64_t index;
    const uint8_t *numbers;
    const float *scales;
} Column;

static inline Column column_of(const Weights *weights, int64_t column) {
    const int64_t index = smaller_of(column, weights->outputs - 1);
    const int64_t bytes = padded_inputs(weights) * weights->bits / 8;
    return (Column){index, weights->numbers + index * bytes,
                    weights->scales + index * blocks_of(weights)};
}

/* What zero points are lower by in the products: AVX2's want signed weights of 8 bits. */
static inline float shift_of(int bits) { return LANES == 8 && bits == 8 ? 128 : 0; }

/* The zero points of blocks of FEW columns, in the lanes of their numbers. */
static NEVER_INLINE void read_zeros(const Weights *weights, const Column *columns, int64_t block,
                                    int count, int run, int bits, Floats *zeros) {
    for (int c = 0; c < FEW; c++) {
        float points[LANES];
        for (int i = 0; i < count; i++)
            points[i] = (float)zero_point(weights, columns[c].index, block + i) - shift_of(bits);
        zeros[c] = floats_spread(points, count, run);
    }
}

/* Products with weights of 8 bits. */
ALWAYS_INLINE Integers dot_bytes(Integers sum, Integers weights, Integers activations) {
#ifdef KERNELS_AVX512
    return dot(sum, weights, activations);
#else
    return dot_signed(sum, _mm256_xor_si256(weights, bytes_all(128)), activations);
#endif
}

/* What zero points are multiplied with: sums of activations, negated, [starts][FEW] for `rows` rows
 * from `row`. They are the same for all columns. */
ALWAYS_INLINE void sum_activations(const Product *product, int64_t row, int rows, int64_t starts,
                                   int64_t units, Floats *sums, int bits) {
    const int64_t width = spans_of(&product->weights) * SPAN, unit = unit_of(bits);
    const int halves = bits == 4 ? 2 : 1;
    for (int64_t at = 0; at < starts; at++)
        for (int r = 0; r < rows; r++) {
            const int8_t *from = product->rounded + (row + r) * width + at * units * unit;
            Integers sum = integers_zero();
            for (int64_t i = 0; i < units * halves; i++)
                sum = dot(sum, bytes_all(1), integers_load(from + i * VECTOR));
            sums[at * FEW + r] = to_floats(subtract(integers_zero(), sum));
        }
}

/* Add products of `rows` rows from `row` with FEW columns to totals [FEW][rows]: `units` vectors of
 * weights from number `start` on, which share the rows' scale, and whose activations have these
 * `sums`. Weights share theirs too unless `is_spread`: then a vector holds more than one block.
 * `zeros` [FEW] stay unless weights have zero points of their own. */
ALWAYS_INLINE void add_products(const Product *product, int64_t row, int rows,
                                const Column *columns, int64_t start, int64_t units, bool is_spread,
                                const Floats *sums, Floats *zeros, Floats (*totals)[FEW],
                                int bits) {
    const Weights *weights = &product->weights;
    const int64_t spans = spans_of(weights), unit = unit_of(bits);
    const int8_t *activations = product->rounded + row * spans * SPAN + start;
    const int halves = bits == 4 ? 2 : 1;
    Floats scales[FEW];
    UNROLLED for (int r = 0; r < rows; r++) scales[r] =
        floats_all(product->row_scales[(row + r) * spans + start / SPAN]);
    const int64_t block = start >> __builtin_ctzll(weights->block);
    const int run = (int)(weights->block * bits / 32);
    const int count =
        is_spread ? (int)smaller_of(unit / weights->block, blocks_of(weights) - block) : 1;
    if (weights->zero_points && is_spread)
        read_zeros(weights, columns, block, count, run, bits, zeros);
    UNROLLED for (int c = 0; c < FEW; c++) {
        const uint8_t *from = columns[c].numbers + start * bits / 8;
        Integers products[FEW];
        UNROLLED for (int r = 0; r < rows; r++) products[r] = integers_zero();
        for (int64_t i = 0; i < units; i++) {
            const Integers stored = integers_load(from + i * VECTOR);
            __builtin_prefetch(from + i * VECTOR + AHEAD);
            UNROLLED for (int r = 0; r < rows; r++) {
                const int8_t *numbers = activations + r * spans * SPAN + i * halves * VECTOR;
                if (bits == 8) {
                    products[r] = dot_bytes(products[r], stored, integers_load(numbers));
                } else {
                    products[r] = dot(products[r], low_nibbles(stored), integers_load(numbers));
                    products[r] =
                        dot(products[r], high_nibbles(stored), integers_load(numbers + VECTOR));
                }
            }
        }
        if (weights->zero_points && !is_spread)
            zeros[c] =
                floats_all((float)zero_point(weights, columns[c].index, block) - shift_of(bits));
        const Floats scale = is_spread ? floats_spread(columns[c].scales + block, count, run)
                                       : floats_all(columns[c].scales[block]);
        UNROLLED for (int r = 0; r < rows; r++) {
            const Floats real = multiply_add(zeros[c], sums[r], to_floats(products[r]));
            totals[c][r] = multiply_add(real, multiply(scale, scales[r]), totals[c][r]);
        }
    }
}

/* Let columns have zeros behind their last `left` bytes of weights, which begin at byte `start`. */
static NEVER_INLINE void pad_columns(Column *columns, int64_t start, int64_t left,
                                     uint8_t (*padded)[VECTOR]) {
    for (int c = 0; c < FEW; c++) {
        memset(padded[c], 0, VECTOR);
        memcpy(padded[c], columns[c].numbers + start, left);
        columns[c].numbers = padded[c] - start;
    }
}

/* Vectors of weights that share a scale of the rows, and of their own. */
ALWAYS_INLINE int64_t units_of(const Weights *weights, bool has_one, int bits) {
    return has_one ? 1 : smaller_of(weights->block, SPAN) / unit_of(bits);
}

/* `rows` rows from `row`, times FEW columns from `first`; what isn't an index is known when
 * compiling. */
ALWAYS_INLINE void multiply_some(const Product *product, int64_t row, int rows, int64_t first,
                                 const Floats *sums, bool is_spread, bool has_one, int bits) {
    const Weights *weights = &product->weights;
    const int64_t unit = unit_of(bits), inputs = padded_inputs(weights);
    const int64_t units = units_of(weights, has_one, bits);
    Column columns[FEW];
    Floats totals[FEW][FEW], zeros[FEW];
    uint8_t padded[FEW][VECTOR];
    UNROLLED for (int c = 0; c < FEW; c++) {
        columns[c] = column_of(weights, first + c);
        zeros[c] = floats_all((float)(1 << (bits - 1)) - shift_of(bits));
        UNROLLED for (int r = 0; r < rows; r++) totals[c][r] = floats_all(0);
    }
    for (int64_t start = 0; start < inputs; start += units * unit, sums += FEW) {
        if (is_spread && start + unit > inputs)
            pad_columns(columns, start * bits / 8, (inputs - start) * bits / 8, padded);
        add_products(product, row, rows, columns, start, units, is_spread, sums, zeros, totals,
                     bits);
    }
    const int64_t left = weights->outputs - first;
    UNROLLED for (int c = 0; c < FEW; c++) UNROLLED for (int r = 0; r < rows; r++) if (c < left)
        product->result[(row + r) * weights->outputs + first + c] =
        sum_of(totals[c][r]) + (product->bias ? product->bias[first + c] : 0);
}

/* `rows` rows from `row`, times the columns of a part. */
ALWAYS_INLINE void multiply_group(const Product *product, int64_t row, int rows, int64_t first,
                                  bool is_spread, bool has_one, int bits) {
    const Weights *weights = &product->weights;
    const int64_t units = units_of(weights, has_one, bits), step = units * unit_of(bits);
    const int64_t starts = (padded_inputs(weights) + step - 1) / step;
    const int64_t last = smaller_of(first + PART_COLUMNS, weights->outputs);
    Floats sums[starts * FEW];
    sum_activations(product, row, rows, starts, units, sums, bits);
    for (int64_t column = first; column < last; column += FEW)
        multiply_some(product, row, rows, column, sums, is_spread, has_one, bits);
}

ALWAYS_INLINE void multiply_part(const Product *product, int64_t first, bool is_spread,
                                 bool has_one, int bits) {
    for (int64_t row = 0; row < product->rows; row += FEW)
        switch (smaller_of(FEW, product->rows - row)) {
        case 1:
            multiply_group(product, row, 1, first, is_spread, has_one, bits);
            break;
        case 2:
            multiply_group(product, row, 2, first, is_spread, has_one, bits);
            break;
        case 3:
            multiply_group(product, row, 3, first, is_spread, has_one, bits);
            break;
        default:
            multiply_group(product, row, 4, first, is_spread, has_one, bits);
        }
}

ALWAYS_INLINE void multiply_few_of(const Product *product, int64_t first, int bits) {
    const int64_t unit = unit_of(bits), shared = smaller_of(product->weights.block, SPAN);
    if (shared < unit)
        multiply_part(product, first, true, true, bits);
    else if (shared == unit)
        multiply_part(product, first, false, true, bits);
    else
        multiply_part(product, first, false, false, bits);
}

static void multiply_few(void *data, size_t part) {
    const Product *product = data;
    if (product->weights.bits == 4)
        multiply_few_of(product, part * PART_COLUMNS, 4);
    else
        multiply_few_of(product, part * PART_COLUMNS, 8);
}
