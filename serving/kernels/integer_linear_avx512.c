/* The integer linear layer's functions for AVX-512. */
#include "begin_avx512.h"

#include "integer_linear_rows.h"

const LinearKernels integer_linear_kernels_avx512 = INTEGER_LINEAR_KERNELS;

#include "end_target.h"
