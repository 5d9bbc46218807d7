/* The product's functions for AVX2. */
#include "begin_avx2.h"

#include "product_kernels.h"

const ProductKernels product_kernels_avx2 = PRODUCT_KERNELS;

#include "end_target.h"
