#define _GNU_SOURCE /* getrandom, clock_gettime */
#include "random.h"

#include <stddef.h>
#include <sys/random.h>
#include <time.h>

typedef unsigned __int128 uint128;

enum { POOL = 4, WORDS = 8 };

/* O'Neill, "Developing a seed_seq Alternative", 2015; the constants are numpy's. */
static uint32_t hashed(uint32_t value, uint32_t *constant, uint32_t multiplier) {
    value ^= *constant;
    *constant *= multiplier;
    value *= *constant;
    return value ^ value >> 16;
}

static uint32_t mixed(uint32_t x, uint32_t y) {
    const uint32_t result = x * 0xca01f9ddu - y * 0x4973f715u;
    return result ^ result >> 16;
}

/* numpy.random.SeedSequence(seed).generate_state(8). */
static void spread(uint64_t seed, uint32_t words[WORDS]) {
    const uint32_t entropy[POOL] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    uint32_t pool[POOL], constant = 0x43b0d7e5u;
    for (size_t i = 0; i < POOL; i++)
        pool[i] = hashed(entropy[i], &constant, 0x931e8875u);
    for (size_t from = 0; from < POOL; from++)
        for (size_t to = 0; to < POOL; to++)
            if (from != to)
                pool[to] = mixed(pool[to], hashed(pool[from], &constant, 0x931e8875u));
    constant = 0x8b51f9ddu;
    for (size_t i = 0; i < WORDS; i++)
        words[i] = hashed(pool[i % POOL], &constant, 0x58f38dedu);
}

/* O'Neill, "PCG: A Family of Simple Fast Space-Efficient Statistically Good Algorithms", 2014. */
static void step(Random *random) {
    const uint128 multiplier = (uint128)2549297995355413924u << 64 | 4865540595714422341u;
    random->state = random->state * multiplier + random->increment;
}

static uint128 four_words(const uint32_t *words) {
    const uint64_t high = (uint64_t)words[1] << 32 | words[0];
    const uint64_t low = (uint64_t)words[3] << 32 | words[2];
    return (uint128)high << 64 | low;
}

Random random_from_seed(uint64_t seed) {
    uint32_t words[WORDS];
    spread(seed, words);
    Random random = {.state = 0, .increment = four_words(words + 4) << 1 | 1};
    step(&random);
    random.state += four_words(words);
    step(&random);
    return random;
}

Random random_from_entropy(void) {
    uint64_t seed;
    if (getrandom(&seed, sizeof seed, 0) != sizeof seed) {
        struct timespec now;
        clock_gettime(CLOCK_REALTIME, &now);
        seed = (uint64_t)now.tv_nsec << 32 ^ (uint64_t)now.tv_sec;
    }
    return random_from_seed(seed);
}

double random_next(Random *random) {
    step(random);
    const uint64_t folded = (uint64_t)(random->state >> 64) ^ (uint64_t)random->state;
    const unsigned rotation = (unsigned)(random->state >> 122);
    const uint64_t bits = folded >> rotation | folded << (-rotation & 63);
    return (double)(bits >> 11) * 0x1p-53;
}
