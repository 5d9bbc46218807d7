/* The float product's functions for AVX-512. */
#if defined(__clang__)
#pragma clang attribute push(                                                                      \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c"))),        \
    apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")
#endif
#define KERNELS_AVX512

#include "float_rows.h"

const FloatKernels float_kernels_avx512 = {
    .tile_columns = TILE,
    .group_rows = GROUP,
    .fill_group = fill_group,
    .multiply_few = multiply_few,
    .multiply_tile = multiply_tile,
};
#if defined(__clang__)
#pragma clang attribute pop
#endif
