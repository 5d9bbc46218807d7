/* Attention's functions for AVX2. */
#include "begin_avx2.h"

#include "attention_rows.h"

const AttentionKernels attention_kernels_avx2 = ATTENTION_KERNELS;

#include "end_target.h"
