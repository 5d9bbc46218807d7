/* The product's functions for AVX-512 VNNI. */
#if defined(__clang__)
#pragma clang attribute push(                                                                      \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c"))),        \
    apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")
#endif
#define KERNELS_AVX512

#include "few_rows.h"
#include "halves.h"
#include "many_rows.h"
#include "rounding.h"

const ProductKernels product_kernels_avx512 = {
    .tile_columns = TILE,
    .tile_rows = TILE_ROWS,
    .round_group = round_group,
    .multiply_few = multiply_few,
    .multiply_tile = multiply_tile,
    .widen = widen,
    .narrow = narrow,
};
#if defined(__clang__)
#pragma clang attribute pop
#endif
