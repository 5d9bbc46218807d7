/* The product's functions for AVX-512 VNNI. */
#include "begin_avx512.h"

#include "product_kernels.h"

const ProductKernels product_kernels_avx512 = PRODUCT_KERNELS;

#include "end_target.h"
