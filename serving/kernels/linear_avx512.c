/* The linear layer's functions for AVX-512. */
#include "begin_avx512.h"

#include "linear_rows.h"

const LinearKernels linear_kernels_avx512 = LINEAR_KERNELS;

#include "end_target.h"
