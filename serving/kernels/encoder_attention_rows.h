/* Attention without a cache: a group of queries against all keys, softmax, and its product with the
 * values. Scores lie as a group's numbers do, so that they are multiplied where they are. */
#pragma once

#include <math.h>

#include "encoder_attention.h"
#include "grouped_rows.h"

/* Scores are powers of two, not of e. */
#define BITS_OF_E 1.44269504f
/* Below any score of a key that is seen. */
#define LEAST (-1e30f)

/* A head's keys and values, and what one group of queries needs. */
typedef struct {
    const EncoderAttention *attention;
    int64_t sequence, head;
    int64_t keys, key_chunks; /* as many as fill tiles, and chunks of them */
    float *key_tiles;         /* [keys / TILE][padded head size][TILE] */
    float *value_tiles;       /* [head size / TILE][keys][TILE] */
    float *unseen;            /* [1 or GROUP][keys]: 0, or minus infinity for a key not seen */
    int64_t unseen_stride;    /* 0 where all queries see the same */
    float *queries;           /* [chunks][GROUP][CHUNK] */
    float *scores;            /* [key chunks][GROUP][CHUNK] */
} Head;

static inline int64_t padded(int64_t count, int64_t size) { return pieces_of(count, size) * size; }

static inline int64_t padded_keys(const EncoderAttention *attention) {
    return padded(attention->tokens, larger_of(TILE, CHUNK));
}

static int64_t scratch_size(const EncoderAttention *attention) {
    const int64_t keys = padded_keys(attention), size = attention->head_size;
    return keys * (padded(size, CHUNK) + padded(size, TILE) + 2 * GROUP) +
           GROUP * padded(size, CHUNK);
}

static inline Head head_of(const EncoderAttention *attention, int64_t sequence, int64_t head,
                           float *scratch) {
    const int64_t keys = padded_keys(attention), size = attention->head_size;
    Head made = {.attention = attention, .sequence = sequence, .head = head, .keys = keys};
    made.key_chunks = keys / CHUNK;
    made.key_tiles = scratch;
    made.value_tiles = made.key_tiles + keys * padded(size, CHUNK);
    made.scores = made.value_tiles + keys * padded(size, TILE);
    made.queries = made.scores + keys * GROUP;
    made.unseen = made.queries + GROUP * padded(size, CHUNK);
    made.unseen_stride = attention->mask_query ? keys : 0;
    return made;
}

static inline void load_keys_and_values(const Head *head) {
    const EncoderAttention *attention = head->attention;
    const int64_t size = attention->head_size, stride = attention->kv_stride;
    const int64_t kv_head = head->head / (attention->heads / attention->kv_heads);
    const int64_t place = head->sequence * attention->tokens * stride + kv_head * size;
    for (int64_t key = 0; key < head->keys; key += TILE)
        fill_tile(attention->keys + place, attention->tokens, stride, size, key,
                  head->key_tiles + key * padded(size, CHUNK));
    for (int64_t i = 0; i < size; i += LANES) {
        float *tile = head->value_tiles + i / TILE * head->keys * TILE + i % TILE;
        const float *values = attention->values + place + i;
        for (int64_t key = 0; key < head->keys; key++)
            floats_store(
                tile + key * TILE,
                floats_load_some(values + key * stride, key < attention->tokens ? size - i : 0));
    }
}

/* 2 to the power of x, at most 0, to 2e-7 of it: a whole power times a polynomial, fitted to 8e-8,
 * of the rest. */
static inline Floats power_of_two(Floats x) {
    static const float factors[] = {0.00967554133f, 0.0555071327f, 0.240221197f, 0.693146967f, 1};
    const Floats bounded = larger(x, floats_all(-126)), whole = nearest(bounded);
    const Floats rest = subtract_floats(bounded, whole);
    Floats sum = floats_all(0.00132764718f);
    UNROLLED for (int i = 0; i < 5; i++) sum = multiply_add(sum, rest, floats_all(factors[i]));
    return scale_by_power(sum, whole);
}

/* What is added to the scores of a query, for each key. */
static inline void load_mask(const Head *head, int64_t query, float *unseen) {
    const EncoderAttention *attention = head->attention;
    const bool *mask =
        attention->mask + head->sequence * attention->mask_sequence + query * attention->mask_query;
    for (int64_t key = 0; key < head->keys; key++)
        unseen[key] = key < attention->tokens && mask[key] ? 0 : -INFINITY;
}

/* Scores of `group` queries, a number known when compiling, with a tile of keys, and the largest of
 * each query so far in `most`. */
ALWAYS_INLINE void score_tile(const Head *head, Floats *most, int64_t key, int group) {
    const int64_t size = padded(head->attention->head_size, CHUNK);
    const int64_t next = head->unseen_stride;
    Floats sums[GROUP][2];
    multiply_group(head->queries, head->key_tiles + key * size, size / CHUNK, NULL, 0, group, sums);
    UNROLLED for (int half = 0; half < 2; half++) {
        const int64_t column = key + half * LANES;
        float *place = head->scores + column / CHUNK * group * CHUNK + column % CHUNK;
        UNROLLED for (int r = 0; r < group; r++) {
            const Floats unseen = floats_load(head->unseen + r * next + column);
            sums[r][half] = add(sums[r][half], unseen);
            floats_store(place + r * CHUNK, sums[r][half]);
        }
    }
    UNROLLED for (int r = 0; r < group; r++) most[r] =
        larger(most[r], larger(sums[r][0], sums[r][1]));
}

/* Turn a row's scores, the largest of which is `most`, into weights, and return their sum. */
static inline float weigh(const Head *head, int64_t row, int64_t group, float most) {
    float *scores = head->scores + row * CHUNK;
    Floats total = floats_all(0);
    for (int64_t chunk = 0; chunk < head->key_chunks; chunk++)
        UNROLLED for (int i = 0; i < CHUNK; i += LANES) {
            float *place = scores + chunk * group * CHUNK + i;
            const Floats weights =
                power_of_two(subtract_floats(floats_load(place), floats_all(most)));
            floats_store(place, weights);
            total = add(total, weights);
        }
    return sum_of(total);
}

/* Results of `group` queries, a number known when compiling, from `query` on, in a tile of a head's
 * numbers; `rows` of them are queries indeed. */
ALWAYS_INLINE void add_values(const Head *head, int64_t query, int64_t rows, const float *totals,
                              int64_t column, int group) {
    const EncoderAttention *attention = head->attention;
    const int64_t size = attention->head_size, stride = attention->heads * size;
    Floats sums[GROUP][2];
    multiply_group(head->scores, head->value_tiles + column * head->keys, head->key_chunks, NULL, 0,
                   group, sums);
    float *result = attention->result + (head->sequence * attention->tokens + query) * stride +
                    head->head * size + column;
    UNROLLED for (int r = 0; r < group; r++) if (r < rows) {
        const Floats factor = floats_all(1 / totals[r]);
        UNROLLED for (int half = 0; half < 2; half++)
            floats_store_some(result + r * stride + half * LANES, multiply(sums[r][half], factor),
                              size - column - half * LANES);
    }
}

static inline void attend_group(const Head *head, int64_t query, int64_t rows, int64_t group) {
    const EncoderAttention *attention = head->attention;
    const int64_t size = attention->head_size, stride = attention->query_stride;
    const int64_t place = (head->sequence * attention->tokens + query) * stride;
    Floats most[GROUP];
    float totals[GROUP];
    fill_group(attention->queries + place + head->head * size, rows, stride, size,
               attention->scale * BITS_OF_E, group, head->queries);
    for (int64_t r = 0; head->unseen_stride && r < group; r++)
        load_mask(head, query + smaller_of(r, rows - 1), head->unseen + r * head->unseen_stride);
    for (int r = 0; r < GROUP; r++)
        most[r] = floats_all(LEAST);
    for (int64_t key = 0; key < head->keys; key += TILE)
        FOR_GROUP(group, score_tile, head, most, key)
    for (int64_t r = 0; r < group; r++)
        totals[r] = weigh(head, r, group, largest_of(most[r]));
    for (int64_t column = 0; column < size; column += TILE)
        FOR_GROUP(group, add_values, head, query, rows, totals, column)
}

static void attend(const EncoderAttention *attention, int64_t task, float *scratch) {
    const int64_t whole = task / attention->parts, part = task % attention->parts;
    const Head head =
        head_of(attention, whole / attention->heads, whole % attention->heads, scratch);
    load_keys_and_values(&head);
    if (!head.unseen_stride)
        load_mask(&head, 0, head.unseen);
    const int64_t queries = pieces_of(attention->tokens, attention->parts);
    const int64_t first = part * queries, last = smaller_of(first + queries, attention->tokens);
    const int64_t group = rows_of_group(larger_of(last - first, 1), GROUP);
    for (int64_t query = first; query < last; query += group)
        attend_group(&head, query, smaller_of(group, last - query), group);
}

/* This instruction set's table. */
#define ENCODER_ATTENTION {.scratch_size = scratch_size, .attend = attend}
