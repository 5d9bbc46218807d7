/* What the parts of encoders' attention tell each other. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "sizes.h"

/* Every token against all tokens of its sequence that its mask lets it see. */
typedef struct {
    int64_t batch, tokens, heads, kv_heads, head_size;
    float scale;
    const float *queries;       /* [batch, tokens, heads, head_size], tokens query_stride apart */
    const float *keys, *values; /* [batch, tokens, kv_heads, head_size], tokens kv_stride apart */
    int64_t query_stride, kv_stride;
    const bool *mask; /* [batch, tokens, tokens]: whether a query sees a key, at these strides */
    int64_t mask_sequence, mask_query;
    float *result; /* [batch, tokens, heads, head_size] */
    int64_t parts; /* that the queries of a head are divided into */
} EncoderAttention;

/* The functions of one instruction set. */
typedef struct {
    /* Numbers of memory that a task needs. */
    int64_t (*scratch_size)(const EncoderAttention *attention);
    /* One part of one head of one sequence. */
    void (*attend)(const EncoderAttention *attention, int64_t task, float *scratch);
} EncoderAttentionKernels;

extern const EncoderAttentionKernels encoder_attention_avx2, encoder_attention_avx512;
