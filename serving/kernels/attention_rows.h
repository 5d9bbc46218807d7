/* Attention, block by block of keys with a running softmax (Milakov and Gimelshein, "Online
 * normalizer calculation for softmax", 2018), so that no scores are kept. One token's keys may be
 * cut into parts, for more threads than there are heads of keys. */
#pragma once

#include <math.h>
#include <string.h>

#include "attention_block.h"

/* ---- The cache ---- */

static void store_new(void *data, size_t index) {
    const Attention *attention = data;
    const int64_t sequence = index / attention->kv_heads, head = index % attention->kv_heads;
    const int64_t size = attention->head_size,
                  past = attention->last[sequence] + 1 - attention->tokens;
    const int64_t cache = index * attention->capacity * size;
    const int64_t source = sequence * attention->tokens * attention->kv_stride + head * size;
    if (attention->keys != attention->past_keys)
        memcpy(attention->keys + cache, attention->past_keys + cache,
               attention->capacity * size * sizeof(float));
    if (attention->values != attention->past_values)
        memcpy(attention->values + cache, attention->past_values + cache,
               attention->capacity * size * sizeof(float));
    for (int64_t token = 0; token < attention->tokens; token++) {
        const int64_t place = cache + (past + token) * size;
        const int64_t from = source + token * attention->kv_stride;
        memcpy(attention->keys + place, attention->new_keys + from, size * sizeof(float));
        memcpy(attention->values + place, attention->new_values + from, size * sizeof(float));
    }
}

/* ---- One block of rows ---- */

/* Where a row's numbers are in the query and, with other strides, in the result. */
static inline int64_t place_of(const Attention *attention, int64_t sequence, int64_t kv_head,
                               int64_t row, int64_t stride) {
    const int64_t shared = attention->heads / attention->kv_heads;
    const int64_t token = row / shared, head = kv_head * shared + row % shared;
    return (sequence * attention->tokens + token) * stride + head * attention->head_size;
}

static inline void load_rows(const Attention *attention, int64_t sequence, int64_t kv_head,
                             Rows *rows) {
    const int64_t size = attention->head_size;
    rows->size = size;
    rows->stride = pieces_of(size, LANES) * LANES;
    /* Rows behind the last one are multiplied too: two at once of a few, GROUP of many. */
    const int64_t used = pieces_of(rows->count, 2 * GROUP) * 2 * GROUP;
    memset(rows->queries, 0, used * rows->stride * sizeof(float));
    memset(rows->sums, 0, used * rows->stride * sizeof(float));
    for (int64_t r = 0; r < rows->count; r++) {
        rows->largest[r] = -1e30f;
        rows->totals[r] = 0;
        const float *query = attention->query + place_of(attention, sequence, kv_head,
                                                         rows->first + r, attention->query_stride);
        for (int64_t i = 0; i < size; i++)
            rows->queries[r * rows->stride + i] = query[i] * attention->scale;
    }
}

/* cap * tanh(score / cap) */
static inline void cap_scores(float *scores, float cap) {
    for (int i = 0; i < BLOCK_KEYS; i += LANES) {
        const Floats power = exponential(multiply(floats_load(scores + i), floats_all(2 / cap)));
        const Floats part = divide(floats_all(2 * cap), add(power, floats_all(1)));
        floats_store(scores + i, subtract_floats(floats_all(cap), part));
    }
}

/* Turn a row's scores into weights: only keys [from, to) of the block are seen. */
static inline void weigh(const Attention *attention, Rows *rows, int64_t r, int64_t from,
                         int64_t to) {
    float *scores = rows->scores[r];
    for (int64_t i = larger_of(to, 0); i < BLOCK_KEYS; i++)
        scores[i] = 0;
    if (attention->softcap > 0)
        cap_scores(scores, attention->softcap);
    for (int64_t i = 0; i < smaller_of(from, BLOCK_KEYS); i++)
        scores[i] = -INFINITY;
    for (int64_t i = larger_of(to, 0); i < BLOCK_KEYS; i++)
        scores[i] = -INFINITY;
    Floats largest = floats_all(rows->largest[r]), total = floats_all(0);
    for (int i = 0; i < BLOCK_KEYS; i += LANES)
        largest = larger(largest, floats_load(scores + i));
    const float most = largest_of(largest);
    for (int i = 0; i < BLOCK_KEYS; i += LANES) {
        const Floats weights =
            exponential(subtract_floats(floats_load(scores + i), floats_all(most)));
        floats_store(scores + i, weights);
        total = add(total, weights);
    }
    if (rows->largest[r] != most) {
        const Floats factor = exponential(floats_all(rows->largest[r] - most));
        float *sums = rows->sums + r * rows->stride;
        for (int64_t i = 0; i < rows->stride; i += LANES)
            floats_store(sums + i, multiply(floats_load(sums + i), factor));
        rows->totals[r] *= first_of(factor);
        rows->largest[r] = most;
    }
    rows->totals[r] += sum_of(total);
}

/* ---- Tasks ---- */

static inline void store_rows(const Attention *attention, int64_t sequence, int64_t kv_head,
                              int64_t part, const Rows *rows) {
    const int64_t size = attention->head_size, shared = attention->heads / attention->kv_heads;
    for (int64_t r = 0; r < rows->count; r++) {
        if (attention->parts == 1) {
            float *result = attention->result + place_of(attention, sequence, kv_head,
                                                         rows->first + r, attention->heads * size);
            for (int64_t i = 0; i < size; i++)
                result[i] = rows->sums[r * rows->stride + i] / rows->totals[r];
            continue;
        }
        const int64_t head = sequence * attention->heads + kv_head * shared + rows->first + r;
        float *partial = attention->partial + (head * attention->parts + part) * (size + 2);
        partial[0] = rows->largest[r];
        partial[1] = rows->totals[r];
        memcpy(partial + 2, rows->sums + r * rows->stride, size * sizeof(float));
    }
}

static void attend(void *data, size_t task) {
    const Attention *attention = data;
    const int64_t blocks = blocks_of_rows(attention),
                  shared = attention->heads / attention->kv_heads;
    const int64_t part = task % attention->parts, block = task / attention->parts % blocks;
    const int64_t cache = task / attention->parts / blocks;
    const int64_t sequence = cache / attention->kv_heads, kv_head = cache % attention->kv_heads;
    const int64_t size = attention->head_size,
                  past = attention->last[sequence] + 1 - attention->tokens;
    const float *keys = attention->keys + cache * attention->capacity * size;
    const float *values = attention->values + cache * attention->capacity * size;
    Rows rows;
    rows.first = block * BLOCK_ROWS;
    rows.count = smaller_of(BLOCK_ROWS, attention->tokens * shared - rows.first);
    load_rows(attention, sequence, kv_head, &rows);
    const int64_t window = attention->window < 0 ? INT64_MAX / 2 : attention->window;
    const int64_t first_token = past + rows.first / shared;
    const int64_t last_token = past + (rows.first + rows.count - 1) / shared;
    int64_t start = larger_of(0, first_token + 1 - window), end = last_token + 1;
    if (attention->parts > 1) {
        start = larger_of(start, part * PART_KEYS);
        end = smaller_of(end, (part + 1) * PART_KEYS);
    }
    for (int64_t key = start; key < end; key += BLOCK_KEYS) {
        const int64_t count = smaller_of(BLOCK_KEYS, end - key);
        score_block(&rows, keys + key * size, values + key * size, count);
        for (int64_t r = 0; r < rows.count; r++) {
            const int64_t position = past + (rows.first + r) / shared;
            weigh(attention, &rows, r, position + 1 - window - key,
                  smaller_of(count, position + 1 - key));
        }
        add_block(&rows, values + key * size, count);
    }
    store_rows(attention, sequence, kv_head, part, &rows);
}

/* Put the parts of one head of one token together. */
static void combine(void *data, size_t head) {
    const Attention *attention = data;
    const int64_t size = attention->head_size;
    const float *parts = attention->partial + head * attention->parts * (size + 2);
    float *result = attention->result + head * size;
    float largest = -INFINITY, total = 0;
    for (int64_t part = 0; part < attention->parts; part++)
        largest = fmaxf(largest, parts[part * (size + 2)]);
    memset(result, 0, size * sizeof(float));
    for (int64_t part = 0; part < attention->parts; part++) {
        const float *from = parts + part * (size + 2), factor = expf(from[0] - largest);
        total += factor * from[1];
        for (int64_t i = 0; i < size; i++)
            result[i] += factor * from[2 + i];
    }
    for (int64_t i = 0; i < size; i++)
        result[i] /= total;
}

/* This instruction set's table. */
#define ATTENTION_KERNELS {.store_new = store_new, .attend = attend, .combine = combine}
