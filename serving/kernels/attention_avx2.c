/* Attention's functions for AVX2. */
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
#endif

#include "attention_rows.h"

const AttentionKernels attention_kernels_avx2 = {
    .store_new = store_new,
    .attend = attend,
    .combine = combine,
};
#if defined(__clang__)
#pragma clang attribute pop
#endif
