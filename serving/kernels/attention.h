/* What the parts of attention over a KV cache tell each other. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "sizes.h"

#define MOST_HEAD_SIZE 512

/* New tokens of sequences against their keys and values, new ones included. Query heads that share
 * a key head are side by side. */
typedef struct {
    int64_t batch, tokens, heads, kv_heads, head_size, capacity;
    float scale, softcap;    /* a softcap of 0 is none */
    int64_t window;          /* positions that a token sees, itself included; -1: all before it */
    const int32_t *last;     /* [batch]: position of each sequence's last new token */
    const float *query;      /* [batch, tokens, heads, head_size], tokens query_stride apart */
    const float *new_keys;   /* [batch, tokens, kv_heads, head_size], tokens kv_stride apart */
    const float *new_values; /* the same */
    int64_t query_stride, kv_stride;
    const float *past_keys, *past_values; /* [batch, kv_heads, capacity, head_size] */
    float *keys, *values;                 /* the same with the new ones; may be the same memory */
    float *result;                        /* [batch, tokens, heads, head_size] */
    int64_t parts;                        /* parts that the keys of a token are cut into */
    float *partial; /* [batch, heads, parts, head_size + 2] where there is more than one */
} Attention;

/* The functions of one instruction set, in the order of their use. */
typedef struct {
    void (*store_new)(void *attention, size_t kv_head); /* of batch * kv_heads */
    void (*attend)(void *attention, size_t task);       /* of attention_tasks() */
    void (*combine)(void *attention, size_t head); /* of batch * heads, where there are parts */
} AttentionKernels;

extern const AttentionKernels attention_kernels_avx2, attention_kernels_avx512;

/* Rows, each a head of a token, that are computed at once. */
#define BLOCK_ROWS 48

/* Keys of one part. */
#define PART_KEYS 512

static inline int64_t blocks_of_rows(const Attention *attention) {
    const int64_t rows = attention->tokens * (attention->heads / attention->kv_heads);
    return pieces_of(rows, BLOCK_ROWS);
}

static inline int64_t attention_tasks(const Attention *attention) {
    return attention->batch * attention->kv_heads * blocks_of_rows(attention) * attention->parts;
}
