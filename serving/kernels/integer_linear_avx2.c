/* The integer linear layer's functions for AVX2. */
#include "begin_avx2.h"

#include "integer_linear_rows.h"

const LinearKernels integer_linear_kernels_avx2 = INTEGER_LINEAR_KERNELS;

#include "end_target.h"
