/* The float product's functions for AVX2. */
#include "begin_avx2.h"

#include "float_rows.h"

const FloatKernels float_kernels_avx2 = FLOAT_KERNELS;

#include "end_target.h"
