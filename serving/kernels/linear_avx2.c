/* The linear layer's functions for AVX2. */
#include "begin_avx2.h"

#include "linear_rows.h"

const LinearKernels linear_kernels_avx2 = LINEAR_KERNELS;

#include "end_target.h"
