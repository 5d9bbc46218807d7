/* GELU(x) = x / 2 (1 + erf(x / sqrt(2))) (Hendrycks and Gimpel, "Gaussian Error Linear Units",
 * 2016).
 */
#pragma once

#include "vectors.h"

/* a + b t + c t^2 and so on. */
static inline Floats polynomial(Floats t, const float factors[6]) {
    Floats sum = floats_all(factors[5]);
    UNROLLED for (int i = 4; i >= 0; i--) sum = multiply_add(sum, t, floats_all(factors[i]));
    return sum;
}

/* erf(x / sqrt(2)) / x is a quotient of two polynomials of x^2, fitted to 7e-9 of it where it is
 * not 1 in float32, up to 5.2. */
static inline Floats exact_gelu_of(Floats x) {
    static const float numerator[] = {0.797884555f,    0.0645953132f,   0.00918769897f,
                                      0.000308732834f, 1.27879371e-05f, 4.99107152e-08f};
    static const float denominator[] = {
        1, 0.247624774f, 0.0277861689f, 0.00180322537f, 6.97075323e-05f, 1.26431357e-06f};
    const Floats bounded = larger(smaller(x, floats_all(5.2f)), floats_all(-5.2f));
    const Floats square = multiply(bounded, bounded);
    const Floats quotient =
        divide(multiply(bounded, polynomial(square, numerator)), polynomial(square, denominator));
    const Floats erf = larger(smaller(quotient, floats_all(1)), floats_all(-1));
    const Floats half = multiply(x, floats_all(0.5f));
    return multiply_add(half, erf, half);
}
