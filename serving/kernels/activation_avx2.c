/* Activation functions for AVX2. */
#include "begin_avx2.h"

#include "activation_rows.h"

const ActivationKernels activation_kernels_avx2 = ACTIVATION_KERNELS;

#include "end_target.h"
