/* This project's operators EncoderAttention and PackedEncoderAttention, whose queries, keys and
 * values are side by side in one tensor. Graphs define them as functions of ONNX's Attention for
 * where these kernels aren't.
 *
 * ONNX Runtime's kernel keeps the scores of all heads, and wants heads in front of tokens.
 */
#include "encoder_attention.h"

#include <stdlib.h>

#include "operators.h"

/* Inputs of the one and of the other operator. */
enum { QUERIES, KEYS, VALUES, MASK, INPUTS };
enum { PACKED, PACKED_MASK, PACKED_INPUTS };

/* Tasks below which the queries of a head are divided. */
#define FEWEST_TASKS 12

/* An operator, its place first, so that one points to the other. */
typedef struct {
    CustomOp op;
    bool is_packed;
} AttentionOp;

typedef struct {
    const Api *api;
    const EncoderAttentionKernels *kernels;
    int64_t heads, kv_heads;
    float scale;
    bool is_packed;
} Operator;

/* One run of an operator. */
typedef struct {
    const Operator *op;
    const KernelContext *context;
    EncoderAttention attention;
    Status *failure;
} Run;

/* ---- Opening ---- */

static Status *create(const CustomOp *op, const Api *api, const KernelInfo *info, void **kernel) {
    Operator *made = calloc(1, sizeof *made);
    if (!made)
        return create_status(api)(FAIL, "EncoderAttention: out of memory");
    made->api = api;
    made->kernels =
        instruction_set_in_use() == AVX512 ? &encoder_attention_avx512 : &encoder_attention_avx2;
    made->heads = int_or(api, info, "heads", 1);
    made->kv_heads = int_or(api, info, "kv_heads", made->heads);
    made->scale = float_or(api, info, "scale", 1);
    made->is_packed = ((const AttentionOp *)op)->is_packed;
    *kernel = made;
    return NULL;
}

/* ---- Running ---- */

static Status *read_rows(const Operator *op, const KernelContext *context,
                         EncoderAttention *attention) {
    const Api *api = op->api;
    const int64_t heads = op->is_packed ? op->heads + 2 * op->kv_heads : op->heads;
    int64_t sizes[3];
    size_t rank;
    ElementType type;
    const void *queries, *keys, *values;
    TRY(input_shape(api, context, QUERIES, sizes, 3, &rank, &type));
    TRY(input_data(api, context, QUERIES, &queries));
    if (rank != 3 || sizes[2] % heads)
        return create_status(api)(FAIL, "EncoderAttention: the rows aren't those of its heads");
    attention->batch = sizes[0];
    attention->tokens = sizes[1];
    attention->head_size = sizes[2] / heads;
    attention->query_stride = attention->kv_stride = sizes[2];
    attention->queries = queries;
    attention->keys = attention->queries + op->heads * attention->head_size;
    attention->values = attention->keys + op->kv_heads * attention->head_size;
    if (op->is_packed)
        return NULL;
    TRY(input_data(api, context, KEYS, &keys));
    TRY(input_data(api, context, VALUES, &values));
    attention->keys = keys;
    attention->values = values;
    attention->kv_stride = op->kv_heads * attention->head_size;
    return NULL;
}

/* A mask [batch or 1, 1, tokens or 1, tokens]. */
static Status *read_mask(const Operator *op, const KernelContext *context,
                         EncoderAttention *attention) {
    const size_t index = op->is_packed ? PACKED_MASK : MASK;
    int64_t sizes[4];
    size_t rank;
    ElementType type;
    const void *mask;
    TRY(input_shape(op->api, context, index, sizes, 4, &rank, &type));
    TRY(input_data(op->api, context, index, &mask));
    if (rank != 4 || sizes[1] != 1 || sizes[3] != attention->tokens)
        return create_status(op->api)(FAIL, "EncoderAttention: the mask isn't one of all heads");
    attention->mask = mask;
    attention->mask_query = sizes[2] == 1 ? 0 : sizes[3];
    attention->mask_sequence = sizes[0] == 1 ? 0 : sizes[2] * sizes[3];
    return NULL;
}

static void attend(void *data, size_t task) {
    Run *run = data;
    const Operator *op = run->op;
    Scratch scratch;
    Status *status =
        take_scratch(op->api, run->context,
                     op->kernels->scratch_size(&run->attention) * sizeof(float), &scratch);
    if (status) {
        keep_first(op->api, &run->failure, status);
        return;
    }
    op->kernels->attend(&run->attention, task, scratch.memory);
    return_scratch(op->api, &scratch);
}

static Status *compute(void *kernel, KernelContext *context) {
    const Operator *op = kernel;
    Run run = {.op = op, .context = context};
    EncoderAttention *attention = &run.attention;
    TRY(read_rows(op, context, attention));
    TRY(read_mask(op, context, attention));
    attention->heads = op->heads;
    attention->kv_heads = op->kv_heads;
    attention->scale = op->scale;
    const int64_t sizes[] = {attention->batch, attention->tokens, op->heads * attention->head_size};
    void *result;
    TRY(output_data(op->api, context, 0, sizes, 3, &result));
    attention->result = result;
    const int64_t heads = attention->batch * op->heads;
    if (heads * attention->tokens == 0)
        return NULL;
    attention->parts = smaller_of(pieces_of(FEWEST_TASKS, heads), attention->tokens);
    Status *status = parallel_for(op->api)(context, attend, heads * attention->parts, 0, &run);
    keep_first(op->api, &run.failure, status);
    return run.failure;
}

/* ---- Signature ---- */

static const char *name(const CustomOp *op) {
    return ((const AttentionOp *)op)->is_packed ? "PackedEncoderAttention" : "EncoderAttention";
}

static size_t input_count(const CustomOp *op) {
    return ((const AttentionOp *)op)->is_packed ? PACKED_INPUTS : INPUTS;
}

static ElementType input_type(const CustomOp *op, size_t index) {
    return index + 1 == input_count(op) ? BOOL : FLOAT;
}

static ElementType output_type(const CustomOp *op, size_t index) {
    (void)op, (void)index;
    return FLOAT;
}

#define ATTENTION_OP(packed)                                                                       \
    {.op = {OPERATOR_ON_THE_CPU, .get_output_count = one_output, .get_name = name,                 \
            .get_input_type = input_type, .get_input_count = input_count,                          \
            .get_output_type = output_type, .get_input_characteristic = required,                  \
            .create_kernel = create, .destroy_kernel = free, .compute = compute},                  \
     .is_packed = packed}

static const AttentionOp attention_op = ATTENTION_OP(false);
static const AttentionOp packed_attention_op = ATTENTION_OP(true);

const CustomOp *const encoder_attention = &attention_op.op;
const CustomOp *const packed_encoder_attention = &packed_attention_op.op;
