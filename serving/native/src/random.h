/* Random numbers: those of numpy.random.Generator(numpy.random.PCG64(seed)).random(). */
#pragma once

#include <stdint.h>

typedef struct {
    unsigned __int128 state;
    unsigned __int128 increment;
} Random;

/* The random state of a seed, which numpy.random.SeedSequence spreads over 256 bits. */
Random random_from_seed(uint64_t seed);

/* A random state from the system's entropy. */
Random random_from_entropy(void);

/* The next number, at least 0 and below 1. */
double random_next(Random *random);
