/* Numbers of 16 bits to floats and back. */
#pragma once

#include <string.h>

#include "vectors.h"

static void widen(const uint16_t *halves, float *floats, size_t count) {
    size_t i = 0;
    for (; i + LANES <= count; i += LANES)
        floats_store(floats + i, halves_load(halves + i));
    uint16_t rest[LANES] = {0};
    float wide[LANES];
    memcpy(rest, halves + i, (count - i) * sizeof *rest);
    floats_store(wide, halves_load(rest));
    memcpy(floats + i, wide, (count - i) * sizeof *wide);
}

static void narrow(const float *floats, uint16_t *halves, size_t count) {
    size_t i = 0;
    for (; i + LANES <= count; i += LANES)
        halves_store(halves + i, floats_load(floats + i));
    float rest[LANES] = {0};
    uint16_t narrowed[LANES];
    memcpy(rest, floats + i, (count - i) * sizeof *rest);
    halves_store(narrowed, floats_load(rest));
    memcpy(halves + i, narrowed, (count - i) * sizeof *narrowed);
}
