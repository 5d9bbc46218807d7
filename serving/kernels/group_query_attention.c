/* ONNX Runtime's operator GroupQueryAttention, for float32 and a cache that is float32 too.
 *
 * Its own kernel keeps the scores of whole prompts, in memory that is made anew for every layer,
 * and is slower over long contexts.
 */
#include <stdlib.h>

#include "attention.h"
#include "operators.h"

enum {
    QUERY,
    KEY,
    VALUE,
    PAST_KEY,
    PAST_VALUE,
    LAST_POSITIONS,
    TOTAL,
    QUERY_LENGTHS = 16,
    INPUTS,
};
enum { RESULT, PRESENT_KEY, PRESENT_VALUE, OUTPUTS };

typedef struct {
    const Api *api;
    const AttentionKernels *kernels;
    int64_t heads, kv_heads, window;
    float scale, softcap;
} Operator;

/* ---- Opening ---- */

static Status *create(const CustomOp *op, const Api *api, const KernelInfo *info, void **kernel) {
    (void)op;
    if (int_or(api, info, "do_rotary", 0) || int_or(api, info, "smooth_softmax", 0))
        return create_status(api)(NOT_IMPLEMENTED, "GroupQueryAttention: rotation and a smooth "
                                                   "softmax aren't among what export-llm's kernels "
                                                   "have");
    Operator *made = calloc(1, sizeof *made);
    if (!made)
        return create_status(api)(FAIL, "GroupQueryAttention: out of memory");
    made->api = api;
    made->kernels =
        instruction_set_in_use() == AVX512 ? &attention_kernels_avx512 : &attention_kernels_avx2;
    made->heads = int_or(api, info, "num_heads", 1);
    made->kv_heads = int_or(api, info, "kv_num_heads", made->heads);
    made->window = int_or(api, info, "local_window_size", -1);
    made->scale = float_or(api, info, "scale", 0);
    made->softcap = float_or(api, info, "softcap", 0);
    *kernel = made;
    return NULL;
}

/* ---- Running ---- */

/* What the node computes between its lengths and its cache isn't read here. */
static Status *refuse_other_inputs(const Api *api, const KernelContext *context) {
    for (size_t index = TOTAL + 1; index < QUERY_LENGTHS; index++) {
        const void *data;
        TRY(input_data(api, context, index, &data));
        if (data)
            return create_status(api)(NOT_IMPLEMENTED, "GroupQueryAttention: tables, masks, sinks "
                                                       "and scales aren't read here");
    }
    return NULL;
}

/* The rows of queries, keys and values, which may be side by side in one tensor. */
static Status *read_rows(const Operator *op, const KernelContext *context, Attention *attention) {
    const Api *api = op->api;
    int64_t sizes[3];
    size_t rank;
    ElementType type;
    const void *query, *key, *value;
    TRY(input_shape(api, context, QUERY, sizes, 3, &rank, &type));
    TRY(input_data(api, context, QUERY, &query));
    TRY(input_data(api, context, KEY, &key));
    TRY(input_data(api, context, VALUE, &value));
    attention->batch = sizes[0];
    attention->tokens = sizes[1];
    attention->query = query;
    attention->query_stride = attention->kv_stride = sizes[2];
    if (key) {
        attention->new_keys = key;
        attention->new_values = value;
        attention->kv_stride = op->kv_heads * attention->head_size;
    } else {
        attention->new_keys = attention->query + op->heads * attention->head_size;
        attention->new_values = attention->new_keys + op->kv_heads * attention->head_size;
    }
    return NULL;
}

static Status *read_cache(const Operator *op, KernelContext *context, Attention *attention) {
    const Api *api = op->api;
    int64_t sizes[4];
    size_t rank;
    ElementType type;
    void *key_data, *value_data;
    const void *past_keys, *past_values, *last;
    TRY(input_shape(api, context, PAST_KEY, sizes, 4, &rank, &type));
    TRY(input_data(api, context, PAST_KEY, &past_keys));
    TRY(input_data(api, context, PAST_VALUE, &past_values));
    TRY(input_data(api, context, LAST_POSITIONS, &last));
    TRY(output_data(api, context, PRESENT_KEY, sizes, rank, &key_data));
    TRY(output_data(api, context, PRESENT_VALUE, sizes, rank, &value_data));
    if (sizes[3] > MOST_HEAD_SIZE)
        return create_status(api)(NOT_IMPLEMENTED, "GroupQueryAttention: a head has over 512 "
                                                   "numbers");
    attention->capacity = sizes[2];
    attention->head_size = sizes[3];
    attention->past_keys = past_keys;
    attention->past_values = past_values;
    attention->last = last;
    attention->keys = key_data;
    attention->values = value_data;
    return NULL;
}

/* A token alone may have its keys cut into parts. */
static int64_t parts_of(const Attention *attention) {
    int64_t longest = 0;
    for (int64_t i = 0; i < attention->batch; i++)
        longest = larger_of(longest, attention->last[i] + 1);
    return attention->tokens == 1 ? pieces_of(longest, PART_KEYS) : 1;
}

static Status *run(const Operator *op, const KernelContext *context, Attention *attention) {
    const AttentionKernels *kernels = op->kernels;
    const int64_t caches = attention->batch * attention->kv_heads;
    const int64_t heads = attention->batch * attention->heads;
    attention->parts = parts_of(attention);
    const size_t numbers = heads * attention->parts * (attention->head_size + 2);
    Scratch scratch;
    TRY(take_scratch(op->api, context, numbers * sizeof(float), &scratch));
    attention->partial = scratch.memory;
    Status *status = parallel_for(op->api)(context, kernels->store_new, caches, 0, attention);
    if (!status)
        status = parallel_for(op->api)(context, kernels->attend, attention_tasks(attention), 0,
                                       attention);
    if (!status && attention->parts > 1)
        status = parallel_for(op->api)(context, kernels->combine, heads, 0, attention);
    return_scratch(op->api, &scratch);
    return status;
}

static Status *compute(void *kernel, KernelContext *context) {
    const Operator *op = kernel;
    Attention attention = {
        .heads = op->heads,
        .kv_heads = op->kv_heads,
        .scale = op->scale,
        .softcap = op->softcap,
        .window = op->window,
    };
    TRY(refuse_other_inputs(op->api, context));
    TRY(read_cache(op, context, &attention));
    TRY(read_rows(op, context, &attention));
    const int64_t width = op->heads * attention.head_size;
    const int64_t sizes[] = {attention.batch, attention.tokens, width};
    void *result;
    TRY(output_data(op->api, context, RESULT, sizes, 3, &result));
    attention.result = result;
    if (attention.scale == 0)
        attention.scale = 1 / __builtin_sqrtf((float)attention.head_size);
    return attention.tokens ? run(op, context, &attention) : NULL;
}

/* ---- Signature ---- */

static const char *name(const CustomOp *op) {
    (void)op;
    return "GroupQueryAttention";
}

static size_t input_count(const CustomOp *op) {
    (void)op;
    return INPUTS;
}

static size_t output_count(const CustomOp *op) {
    (void)op;
    return OUTPUTS;
}

static Characteristic input_characteristic(const CustomOp *op, size_t index) {
    (void)op;
    const int is_given = index == QUERY || (index >= PAST_KEY && index <= TOTAL);
    return is_given ? REQUIRED : OPTIONAL;
}

static ElementType input_type(const CustomOp *op, size_t index) {
    (void)op;
    return index == LAST_POSITIONS || index == TOTAL || index == QUERY_LENGTHS ? INT32 : FLOAT;
}

static ElementType output_type(const CustomOp *op, size_t index) {
    (void)op, (void)index;
    return FLOAT;
}

const CustomOp group_query_attention = {
    OPERATOR_ON_THE_CPU,
    .get_name = name,
    .get_input_type = input_type,
    .get_input_count = input_count,
    .get_output_type = output_type,
    .get_output_count = output_count,
    .get_input_characteristic = input_characteristic,
    .create_kernel = create,
    .destroy_kernel = free,
    .compute = compute,
};
