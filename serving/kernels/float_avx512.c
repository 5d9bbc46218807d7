/* The float product's functions for AVX-512. */
#include "begin_avx512.h"

#include "float_rows.h"

const FloatKernels float_kernels_avx512 = FLOAT_KERNELS;

#include "end_target.h"
