/* Vector operations that the kernels are written in, for the instruction set of the including file.
 *
 * KERNELS_AVX512 asks for AVX-512 with VNNI; AVX2, FMA and F16C are what is asked for without it.
 */
#pragma once

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#include "sizes.h"

#define ALWAYS_INLINE static inline __attribute__((always_inline))
#define NEVER_INLINE __attribute__((noinline))
#define UNROLLED _Pragma("GCC unroll 16")

#ifdef KERNELS_AVX512

#define LANES 16
#define VECTOR 64 /* bytes */
typedef __m512 Floats;
typedef __m512i Integers; /* 64 of 8 bits or 16 of 32 */

static inline Floats floats_all(float x) { return _mm512_set1_ps(x); }
static inline Floats floats_load(const float *p) { return _mm512_loadu_ps(p); }
static inline Floats halves_load(const uint16_t *p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
}
static inline void halves_store(uint16_t *p, Floats x) {
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}
static inline void floats_store(float *p, Floats x) { _mm512_storeu_ps(p, x); }
static inline Floats add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
static inline Floats multiply(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
static inline Floats multiply_add(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
static inline Floats larger(Floats a, Floats b) { return _mm512_max_ps(a, b); }
static inline Floats smaller(Floats a, Floats b) { return _mm512_min_ps(a, b); }
static inline Floats magnitude(Floats x) { return _mm512_abs_ps(x); }
static inline float first_of(Floats x) { return _mm512_cvtss_f32(x); }
static inline float sum_of(Floats x) { return _mm512_reduce_add_ps(x); }
static inline float largest_of(Floats x) { return _mm512_reduce_max_ps(x); }

/* The first `count` numbers at p, the rest zero; no others are read. */
static inline Floats floats_load_some(const float *p, int64_t count) {
    return _mm512_maskz_loadu_ps(
        count >= LANES ? 0xffff : (__mmask16)((1u << larger_of(count, 0)) - 1), p);
}
/* Store the first `count` lanes at p; no other numbers are written. */
static inline void floats_store_some(float *p, Floats x, int64_t count) {
    const __mmask16 is_written =
        count >= LANES ? 0xffff : (__mmask16)((1u << larger_of(count, 0)) - 1);
    _mm512_mask_storeu_ps(p, is_written, x);
}
static inline Floats subtract_floats(Floats a, Floats b) { return _mm512_sub_ps(a, b); }
static inline Floats divide(Floats a, Floats b) { return _mm512_div_ps(a, b); }
static inline Floats nearest(Floats x) {
    return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
/* x times 2 to the power of n, an integer from -126 to 127. */
static inline Floats scale_by_power(Floats x, Floats n) { return _mm512_scalef_ps(x, n); }
/* The sums of four vectors' lanes. */
static inline void store_sums(float *p, Floats a, Floats b, Floats c, Floats d) {
    const Floats ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    const Floats cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    const __m512d low = _mm512_unpacklo_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd));
    const __m512d high = _mm512_unpackhi_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd));
    const Floats quarters = _mm512_add_ps(_mm512_castpd_ps(low), _mm512_castpd_ps(high));
    const __m256 halves =
        _mm256_add_ps(_mm512_castps512_ps256(quarters), _mm512_extractf32x8_ps(quarters, 1));
    _mm_storeu_ps(p, _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps(halves, 1)));
}
/* Let lane i of row j be lane j of row i. */
static inline void transpose(Floats rows[LANES]) {
    Floats pairs[LANES];
    for (int i = 0; i < LANES; i += 2) {
        pairs[i] = _mm512_unpacklo_ps(rows[i], rows[i + 1]);
        pairs[i + 1] = _mm512_unpackhi_ps(rows[i], rows[i + 1]);
    }
    for (int i = 0; i < LANES; i += 4)
        for (int j = 0; j < 2; j++) {
            const __m512d low = _mm512_castps_pd(pairs[i + j]);
            const __m512d high = _mm512_castps_pd(pairs[i + j + 2]);
            rows[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(low, high));
            rows[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low, high));
        }
    for (int j = 0; j < 4; j++) {
        const Floats even = _mm512_shuffle_f32x4(rows[j], rows[4 + j], 0x88);
        const Floats odd = _mm512_shuffle_f32x4(rows[j], rows[4 + j], 0xdd);
        const Floats even_end = _mm512_shuffle_f32x4(rows[8 + j], rows[12 + j], 0x88);
        const Floats odd_end = _mm512_shuffle_f32x4(rows[8 + j], rows[12 + j], 0xdd);
        rows[j] = _mm512_shuffle_f32x4(even, even_end, 0x88);
        rows[4 + j] = _mm512_shuffle_f32x4(odd, odd_end, 0x88);
        rows[8 + j] = _mm512_shuffle_f32x4(even, even_end, 0xdd);
        rows[12 + j] = _mm512_shuffle_f32x4(odd, odd_end, 0xdd);
    }
}

static inline Integers integers_zero(void) { return _mm512_setzero_si512(); }
static inline Integers bytes_all(int x) { return _mm512_set1_epi8((char)x); }
static inline Integers bytes_repeat(const void *four) {
    return _mm512_set1_epi32(*(const int32_t *)four);
}
static inline Integers integers_load(const void *p) { return _mm512_loadu_si512(p); }
/* The first `count` bytes at p, the rest zero; no others are read. */
static inline Integers integers_load_some(const void *p, int64_t count) {
    const __mmask64 is_read = count >= VECTOR ? ~0ull : (1ull << count) - 1;
    return _mm512_maskz_loadu_epi8(is_read, p);
}
static inline void integers_store(void *p, Integers x) { _mm512_storeu_si512(p, x); }
/* The lowest byte of every 32-bit lane. */
static inline void narrow_store(int8_t *p, Integers x) {
    _mm_storeu_si128((__m128i *)p, _mm512_cvtepi32_epi8(x));
}
static inline Integers add_all(Integers a, int x) {
    return _mm512_add_epi32(a, _mm512_set1_epi32(x));
}
static inline Integers subtract(Integers a, Integers b) { return _mm512_sub_epi32(a, b); }
static inline Integers subtract_bytes(Integers a, Integers b) { return _mm512_sub_epi8(a, b); }
static inline Floats as_floats(Integers x) { return _mm512_castsi512_ps(x); }
static inline Integers as_integers(Floats x) { return _mm512_castps_si512(x); }
static inline Integers low_nibbles(Integers x) { return _mm512_and_si512(x, bytes_all(15)); }
static inline Integers high_nibbles(Integers x) { return low_nibbles(_mm512_srli_epi16(x, 4)); }
static inline Floats to_floats(Integers x) { return _mm512_cvtepi32_ps(x); }
static inline Integers to_integers(Floats x) { return _mm512_cvtps_epi32(x); }

/* The first numbers at p, each repeated in `run` lanes; no others are read. */
static inline Floats floats_spread(const float *p, int count, int run) {
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    __m512i place = _mm512_srl_epi32(lane, _mm_cvtsi32_si128(__builtin_ctz(run)));
    return _mm512_permutexvar_ps(place, _mm512_maskz_loadu_ps((__mmask16)((1u << count) - 1), p));
}

/* Each 32-bit lane of `sum` plus four products of unsigned and of signed bytes. */
static inline Integers dot(Integers sum, Integers is_unsigned, Integers is_signed) {
    /* GCC 12 moves every sum to another register and back round the intrinsic. */
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(is_unsigned), "v"(is_signed));
    return sum;
}

#else

#define LANES 8
#define VECTOR 32 /* bytes */
typedef __m256 Floats;
typedef __m256i Integers; /* 32 of 8 bits or 8 of 32 */

static inline Floats floats_all(float x) { return _mm256_set1_ps(x); }
static inline Floats floats_load(const float *p) { return _mm256_loadu_ps(p); }
static inline Floats halves_load(const uint16_t *p) {
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
}
static inline void halves_store(uint16_t *p, Floats x) {
    _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}
static inline void floats_store(float *p, Floats x) { _mm256_storeu_ps(p, x); }
static inline Floats add(Floats a, Floats b) { return _mm256_add_ps(a, b); }
static inline Floats multiply(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
static inline Floats multiply_add(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
static inline Floats larger(Floats a, Floats b) { return _mm256_max_ps(a, b); }
static inline Floats smaller(Floats a, Floats b) { return _mm256_min_ps(a, b); }
static inline Floats magnitude(Floats x) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x); }
static inline float first_of(Floats x) { return _mm256_cvtss_f32(x); }
static inline float sum_of(Floats x) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}
static inline float largest_of(Floats x) {
    __m128 half = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    half = _mm_max_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_max_ss(half, _mm_movehdup_ps(half)));
}

/* The first `count` numbers at p, the rest zero; no others are read. */
static inline Floats floats_load_some(const float *p, int64_t count) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const int given = (int)smaller_of(count, LANES);
    return _mm256_maskload_ps(p, _mm256_cmpgt_epi32(_mm256_set1_epi32(given), lane));
}
/* Store the first `count` lanes at p; no other numbers are written. */
static inline void floats_store_some(float *p, Floats x, int64_t count) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const int given = (int)smaller_of(count, LANES);
    _mm256_maskstore_ps(p, _mm256_cmpgt_epi32(_mm256_set1_epi32(given), lane), x);
}
static inline Floats subtract_floats(Floats a, Floats b) { return _mm256_sub_ps(a, b); }
static inline Floats divide(Floats a, Floats b) { return _mm256_div_ps(a, b); }
static inline Floats nearest(Floats x) {
    return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
/* x times 2 to the power of n, an integer from -126 to 127. */
static inline Floats scale_by_power(Floats x, Floats n) {
    const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return _mm256_mul_ps(x, _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)));
}
/* The sums of four vectors' lanes. */
static inline void store_sums(float *p, Floats a, Floats b, Floats c, Floats d) {
    const Floats pairs = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
    _mm_storeu_ps(p, _mm_add_ps(_mm256_castps256_ps128(pairs), _mm256_extractf128_ps(pairs, 1)));
}
/* Let lane i of row j be lane j of row i. */
static inline void transpose(Floats rows[LANES]) {
    Floats pairs[LANES];
    for (int i = 0; i < LANES; i += 2) {
        pairs[i] = _mm256_unpacklo_ps(rows[i], rows[i + 1]);
        pairs[i + 1] = _mm256_unpackhi_ps(rows[i], rows[i + 1]);
    }
    for (int i = 0; i < LANES; i += 4)
        for (int j = 0; j < 2; j++) {
            const __m256d low = _mm256_castps_pd(pairs[i + j]);
            const __m256d high = _mm256_castps_pd(pairs[i + j + 2]);
            rows[i + 2 * j] = _mm256_castpd_ps(_mm256_unpacklo_pd(low, high));
            rows[i + 2 * j + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(low, high));
        }
    for (int j = 0; j < 4; j++) {
        const Floats top = rows[j], bottom = rows[4 + j];
        rows[j] = _mm256_permute2f128_ps(top, bottom, 0x20);
        rows[4 + j] = _mm256_permute2f128_ps(top, bottom, 0x31);
    }
}

static inline Integers integers_zero(void) { return _mm256_setzero_si256(); }
static inline Integers bytes_all(int x) { return _mm256_set1_epi8((char)x); }
static inline Integers bytes_repeat(const void *four) {
    return _mm256_set1_epi32(*(const int32_t *)four);
}
static inline Integers integers_load(const void *p) {
    return _mm256_loadu_si256((const __m256i *)p);
}
/* The first `count` bytes at p, the rest zero; no others are read. */
static inline Integers integers_load_some(const void *p, int64_t count) {
    uint8_t bytes[VECTOR] = {0};
    memcpy(bytes, p, count < VECTOR ? count : VECTOR);
    return _mm256_loadu_si256((const __m256i *)bytes);
}
static inline void integers_store(void *p, Integers x) { _mm256_storeu_si256((__m256i *)p, x); }
/* The lowest byte of every 32-bit lane. */
static inline void narrow_store(int8_t *p, Integers x) {
    const __m256i low = _mm256_and_si256(x, _mm256_set1_epi32(255));
    const __m128i pairs =
        _mm_packus_epi32(_mm256_castsi256_si128(low), _mm256_extracti128_si256(low, 1));
    _mm_storel_epi64((__m128i *)p, _mm_packus_epi16(pairs, pairs));
}
static inline Integers add_all(Integers a, int x) {
    return _mm256_add_epi32(a, _mm256_set1_epi32(x));
}
static inline Integers subtract(Integers a, Integers b) { return _mm256_sub_epi32(a, b); }
static inline Integers subtract_bytes(Integers a, Integers b) { return _mm256_sub_epi8(a, b); }
static inline Floats as_floats(Integers x) { return _mm256_castsi256_ps(x); }
static inline Integers as_integers(Floats x) { return _mm256_castps_si256(x); }
static inline Integers low_nibbles(Integers x) { return _mm256_and_si256(x, bytes_all(15)); }
static inline Integers high_nibbles(Integers x) { return low_nibbles(_mm256_srli_epi16(x, 4)); }
static inline Floats to_floats(Integers x) { return _mm256_cvtepi32_ps(x); }
static inline Integers to_integers(Floats x) { return _mm256_cvtps_epi32(x); }

/* The first numbers at p, each repeated in `run` lanes; no others are read. */
static inline Floats floats_spread(const float *p, int count, int run) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    __m256i place = _mm256_srl_epi32(lane, _mm_cvtsi32_si128(__builtin_ctz(run)));
    __m256i is_read = _mm256_cmpgt_epi32(_mm256_set1_epi32(count), lane);
    return _mm256_permutevar8x32_ps(_mm256_maskload_ps(p, is_read), place);
}

/* Each 32-bit lane of `sum` plus four products of unsigned and of signed bytes; sums of two
 * products must fit into 16 bits. */
static inline Integers dot(Integers sum, Integers is_unsigned, Integers is_signed) {
    Integers pairs = _mm256_maddubs_epi16(is_unsigned, is_signed);
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

/* The same for signed bytes. */
static inline Integers dot_signed(Integers sum, Integers weights, Integers activations) {
    return dot(sum, _mm256_abs_epi8(weights), _mm256_sign_epi8(activations, weights));
}

#endif

/* e to the power of x, to 1e-7 of it: 2 to a whole power times Taylor's series of the rest, at most
 * log(2) / 2. Zero far below zero, and no more than e to the 88th. */
static inline Floats exponential(Floats x) {
    const Floats bounded = larger(smaller(x, floats_all(88)), floats_all(-87));
    const Floats power = nearest(multiply(bounded, floats_all(1.44269504f)));
    Floats rest = multiply_add(power, floats_all(-0.693359375f), bounded);
    rest = multiply_add(power, floats_all(2.12194440e-4f), rest);
    Floats sum = floats_all(1.0f / 5040);
    static const float factors[] = {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1, 1};
    UNROLLED for (int i = 0; i < 7; i++) sum = multiply_add(sum, rest, floats_all(factors[i]));
    return scale_by_power(sum, power);
}
