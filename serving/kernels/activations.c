/* Activation functions: ONNX Runtime's operator FastGelu, and this project's SwiGlu and GeGlu
 * (Shazeer, "GLU Variants Improve Transformer", 2020), which graphs define as functions for where
 * these kernels aren't.
 */
#include <stdlib.h>

#include "activations.h"
#include "operators.h"

enum { SOURCE, BIAS, INPUTS };

#define MOST_DIMENSIONS 8

typedef enum { FAST_GELU, GE_GLU, SWI_GLU } Kind;

/* An operator, its place first, so that one points to the other. */
typedef struct {
    CustomOp op;
    Kind kind;
} ActivationOp;

typedef struct {
    const Api *api;
    void (*activate)(void *activation, size_t row);
    bool is_gated;
} Operator;

static Status *create(const CustomOp *op, const Api *api, const KernelInfo *info, void **kernel) {
    (void)info;
    const ActivationKernels *kernels =
        instruction_set_in_use() == AVX512 ? &activation_kernels_avx512 : &activation_kernels_avx2;
    const Kind kind = ((const ActivationOp *)op)->kind;
    Operator *made = calloc(1, sizeof *made);
    if (!made)
        return create_status(api)(FAIL, "an activation function: out of memory");
    made->api = api;
    made->is_gated = kind != FAST_GELU;
    made->activate = kind == FAST_GELU ? kernels->gelu
                     : kind == GE_GLU  ? kernels->gated_gelu
                                       : kernels->gated_silu;
    *kernel = made;
    return NULL;
}

static Status *compute(void *kernel, KernelContext *context) {
    const Operator *op = kernel;
    const Api *api = op->api;
    int64_t sizes[MOST_DIMENSIONS];
    size_t rank;
    ElementType type;
    const void *source, *bias;
    void *result;
    TRY(input_shape(api, context, SOURCE, sizes, MOST_DIMENSIONS, &rank, &type));
    TRY(input_data(api, context, SOURCE, &source));
    TRY(input_data(api, context, BIAS, &bias));
    if (op->is_gated && sizes[rank - 1] % 2)
        return create_status(api)(FAIL, "a gated activation function needs an even width");
    if (op->is_gated)
        sizes[rank - 1] /= 2;
    TRY(output_data(api, context, 0, sizes, rank, &result));
    Activation activation = {.rows = rows_of(sizes, rank),
                             .width = sizes[rank - 1],
                             .source = source,
                             .bias = bias,
                             .result = result};
    return parallel_for(api)(context, op->activate, activation.rows, 0, &activation);
}

/* ---- Signature ---- */

static const char *name(const CustomOp *op) {
    static const char *const names[] = {
        [FAST_GELU] = "FastGelu", [GE_GLU] = "GeGlu", [SWI_GLU] = "SwiGlu"};
    return names[((const ActivationOp *)op)->kind];
}

static size_t input_count(const CustomOp *op) {
    return ((const ActivationOp *)op)->kind == FAST_GELU ? INPUTS : 1;
}

static Characteristic input_characteristic(const CustomOp *op, size_t index) {
    (void)op;
    return index == SOURCE ? REQUIRED : OPTIONAL;
}

static ElementType is_float(const CustomOp *op, size_t index) {
    (void)op, (void)index;
    return FLOAT;
}

#define ACTIVATION_OP(this_kind)                                                                   \
    {.op = {OPERATOR_ON_THE_CPU, .get_output_count = one_output, .get_name = name,                 \
            .get_input_type = is_float, .get_input_count = input_count,                            \
            .get_output_type = is_float, .get_input_characteristic = input_characteristic,         \
            .create_kernel = create, .destroy_kernel = free, .compute = compute},                  \
     .kind = this_kind}

static const ActivationOp fast_gelu_op = ACTIVATION_OP(FAST_GELU);
static const ActivationOp ge_glu_op = ACTIVATION_OP(GE_GLU);
static const ActivationOp swi_glu_op = ACTIVATION_OP(SWI_GLU);

const CustomOp *const fast_gelu = &fast_gelu_op.op;
const CustomOp *const ge_glu = &ge_glu_op.op;
const CustomOp *const swi_glu = &swi_glu_op.op;
