/* Activation functions with a sigmoid: SiLU(x) = x sigmoid(x), and the approximation of GELU with a
 * hyperbolic tangent, x sigmoid(2 sqrt(2 / pi) (x + 0.044715 x^3)) (Hendrycks and Gimpel, "Gaussian
 * Error Linear Units", 2016). */
#pragma once

#include <stdbool.h>

#include "activations.h"
#include "vectors.h"

static inline Floats times_sigmoid(Floats x, Floats angle) {
    const Floats power = exponential(subtract_floats(floats_all(0), angle));
    return divide(x, add(power, floats_all(1)));
}

static inline Floats silu_of(Floats x) { return times_sigmoid(x, x); }

static inline Floats gelu_of(Floats x) {
    const Floats slope = floats_all(1.5957691216f), cubic = floats_all(0.0713548163f);
    return times_sigmoid(x, multiply(x, multiply_add(multiply(x, x), cubic, slope)));
}

/* LANES numbers from the i-th one of a row, or those of them that it has. */
ALWAYS_INLINE void activate_some(const Activation *activation, size_t row, int64_t i, bool is_silu,
                                 bool is_gated) {
    const int64_t width = activation->width, left = width - i;
    const float *source = activation->source + row * (is_gated ? 2 * width : width) + i;
    Floats x = floats_load_some(source, left);
    if (activation->bias)
        x = add(x, floats_load_some(activation->bias + i, left));
    Floats result = is_silu ? silu_of(x) : gelu_of(x);
    if (is_gated)
        result = multiply(result, floats_load_some(source + width, left));
    floats_store_some(activation->result + row * width + i, result, left);
}

static void gelu(void *data, size_t row) {
    const Activation *activation = data;
    for (int64_t i = 0; i < activation->width; i += LANES)
        activate_some(activation, row, i, false, false);
}

static void gated_gelu(void *data, size_t row) {
    const Activation *activation = data;
    for (int64_t i = 0; i < activation->width; i += LANES)
        activate_some(activation, row, i, false, true);
}

static void gated_silu(void *data, size_t row) {
    const Activation *activation = data;
    for (int64_t i = 0; i < activation->width; i += LANES)
        activate_some(activation, row, i, true, true);
}

/* This instruction set's table. */
#define ACTIVATION_KERNELS {.gelu = gelu, .gated_gelu = gated_gelu, .gated_silu = gated_silu}
