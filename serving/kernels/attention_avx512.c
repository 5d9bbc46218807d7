/* Attention's functions for AVX-512. */
#include "begin_avx512.h"

#include "attention_rows.h"

const AttentionKernels attention_kernels_avx512 = ATTENTION_KERNELS;

#include "end_target.h"
