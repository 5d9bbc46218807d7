/* Activation functions for AVX-512. */
#include "begin_avx512.h"

#include "activation_rows.h"

const ActivationKernels activation_kernels_avx512 = ACTIVATION_KERNELS;

#include "end_target.h"
