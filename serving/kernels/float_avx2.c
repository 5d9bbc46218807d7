/* The float product's functions for AVX2. */
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
#endif

#include "float_rows.h"

const FloatKernels float_kernels_avx2 = {
    .tile_columns = TILE,
    .group_rows = GROUP,
    .fill_group = fill_group,
    .multiply_few = multiply_few,
    .multiply_tile = multiply_tile,
};
#if defined(__clang__)
#pragma clang attribute pop
#endif
