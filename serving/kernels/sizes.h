/* Arithmetic of sizes. */
#pragma once

#include <stdint.h>

static inline int64_t smaller_of(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t larger_of(int64_t a, int64_t b) { return a > b ? a : b; }

/* How many pieces of a size hold so many things. */
static inline int64_t pieces_of(int64_t count, int64_t size) { return (count + size - 1) / size; }
