/* Attention's functions for AVX-512. */
#if defined(__clang__)
#pragma clang attribute push(                                                                      \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c"))),        \
    apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")
#endif
#define KERNELS_AVX512

#include "attention_rows.h"

const AttentionKernels attention_kernels_avx512 = {
    .store_new = store_new,
    .attend = attend,
    .combine = combine,
};
#if defined(__clang__)
#pragma clang attribute pop
#endif
