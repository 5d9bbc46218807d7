/* What the parts of an activation function tell each other. */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "sizes.h"

/* Rows of activations; gated ones have the numbers that are multiplied with behind their own. */
typedef struct {
    int64_t rows, width;
    const float *source; /* [rows, width], or [rows, 2 * width] where they are gated */
    const float *bias;   /* [width], or NULL */
    float *result;       /* [rows, width] */
} Activation;

/* The functions of one instruction set, each for one row. */
typedef struct {
    void (*gelu)(void *activation, size_t row);
    void (*gated_gelu)(void *activation, size_t row);
    void (*gated_silu)(void *activation, size_t row);
} ActivationKernels;

extern const ActivationKernels activation_kernels_avx2, activation_kernels_avx512;
