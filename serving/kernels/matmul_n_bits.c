/* ONNX Runtime's operator MatMulNBits, with the products here.
 *
 * Its own kernel copies all weights into another layout when a model is opened and is slower with
 * many rows. Ours reads the weights where the file is mapped.
 */
#include <stdlib.h>
#include <string.h>

#include "operators.h"
#include "product.h"

enum { SOURCE, NUMBERS, SCALES, ZERO_POINTS, ORDER, BIAS, INPUTS };

/* Rows from which it pays to unpack tiles of weights. */
#define MANY_ROWS 12
#define MOST_DIMENSIONS 8

typedef struct {
    const Api *api;
    const ProductKernels *kernels;
    Weights weights;
    float *scales; /* widened, where they are float16 */
} MatMul;

/* ---- Opening ---- */

static Status *read_shape(const Api *api, const KernelInfo *info, Weights *weights) {
    int64_t bits;
    TRY(int_attribute(api)(info, "K", &weights->inputs));
    TRY(int_attribute(api)(info, "N", &weights->outputs));
    TRY(int_attribute(api)(info, "block_size", &weights->block));
    TRY(int_attribute(api)(info, "bits", &bits));
    weights->bits = (int)bits;
    const bool is_power = weights->block > 0 && !(weights->block & (weights->block - 1));
    if ((bits != 4 && bits != 8) || !is_power || weights->block < 16 || weights->block > 256)
        return create_status(api)(NOT_IMPLEMENTED, "MatMulNBits: 4 or 8 bits in blocks of 16 to "
                                                   "256 are what export-llm's kernels have");
    return NULL;
}

static Status *widen_scales(MatMul *matmul, const uint16_t *halves) {
    const size_t count = matmul->weights.outputs * blocks_of(&matmul->weights);
    matmul->scales = malloc(count * sizeof(float));
    if (!matmul->scales)
        return create_status(matmul->api)(FAIL, "MatMulNBits: out of memory");
    matmul->kernels->widen(halves, matmul->scales, count);
    matmul->weights.scales = matmul->scales;
    return NULL;
}

static Status *read_weights(MatMul *matmul, const KernelInfo *info) {
    const void *numbers, *scales, *zero_points;
    ElementType type;
    TRY(constant_tensor(matmul->api, info, NUMBERS, &numbers, NULL));
    TRY(constant_tensor(matmul->api, info, SCALES, &scales, &type));
    TRY(constant_tensor(matmul->api, info, ZERO_POINTS, &zero_points, NULL));
    if (!numbers || !scales)
        return create_status(matmul->api)(NOT_IMPLEMENTED, "MatMulNBits: weights must be constant");
    matmul->weights.numbers = numbers;
    matmul->weights.scales = scales;
    matmul->weights.zero_points = zero_points;
    return type == FLOAT16 ? widen_scales(matmul, scales) : NULL;
}

static Status *create(const CustomOp *op, const Api *api, const KernelInfo *info, void **kernel) {
    (void)op;
    MatMul *matmul = calloc(1, sizeof *matmul);
    if (!matmul)
        return create_status(api)(FAIL, "MatMulNBits: out of memory");
    matmul->api = api;
    matmul->kernels =
        instruction_set_in_use() == AVX512 ? &product_kernels_avx512 : &product_kernels_avx2;
    Status *status = read_shape(api, info, &matmul->weights);
    if (!status)
        status = read_weights(matmul, info);
    if (status)
        free(matmul);
    else
        *kernel = matmul;
    return status;
}

static void destroy(void *kernel) {
    MatMul *matmul = kernel;
    free(matmul->scales);
    free(matmul);
}

/* ---- Running ---- */

static Status *multiply(const MatMul *matmul, const KernelContext *context, Product *product) {
    const ProductKernels *kernels = matmul->kernels;
    const int64_t groups = pieces_of(product->rows, kernels->tile_rows);
    const int64_t spans = groups * kernels->tile_rows * spans_of(&product->weights);
    /* Asymmetric weights of 8 bits have no signed form of 8 bits to unpack. */
    const bool has_tiles = product->weights.bits == 4 || !product->weights.zero_points;
    product->is_tiled = has_tiles && product->rows >= MANY_ROWS;
    Scratch scratch;
    TRY(take_scratch(matmul->api, context, spans * (SPAN + sizeof(float)), &scratch));
    product->rounded = scratch.memory;
    product->row_scales = (float *)(product->rounded + spans * SPAN);

    const int64_t part = product->is_tiled ? kernels->tile_columns : PART_COLUMNS;
    void (*multiply_part)(void *, size_t) =
        product->is_tiled ? kernels->multiply_tile : kernels->multiply_few;
    const int64_t parts = pieces_of(product->weights.outputs, part);
    Status *status = parallel_for(matmul->api)(context, kernels->round_group, groups, 0, product);
    if (!status)
        status = parallel_for(matmul->api)(context, multiply_part, parts, 0, product);
    return_scratch(matmul->api, &scratch);
    return status;
}

/* The same for float16 activations, widened first. */
static Status *multiply_halves(const MatMul *matmul, const KernelContext *context,
                               const uint16_t *source, const uint16_t *bias, uint16_t *result,
                               Product *product) {
    const size_t inputs = product->rows * product->weights.inputs;
    const size_t outputs = product->weights.outputs, results = product->rows * outputs;
    Scratch scratch;
    TRY(take_scratch(matmul->api, context, (inputs + results + outputs) * sizeof(float), &scratch));
    float *floats = scratch.memory;
    product->result = floats + inputs;
    product->source = floats;
    matmul->kernels->widen(source, floats, inputs);
    if (bias) {
        product->bias = product->result + results;
        matmul->kernels->widen(bias, product->result + results, outputs);
    }
    Status *status = multiply(matmul, context, product);
    matmul->kernels->narrow(product->result, result, results);
    return_scratch(matmul->api, &scratch);
    return status;
}

static Status *compute(void *kernel, KernelContext *context) {
    const MatMul *matmul = kernel;
    const Api *api = matmul->api;
    int64_t sizes[MOST_DIMENSIONS];
    size_t rank;
    ElementType type;
    const void *source, *bias, *order;
    void *result;
    TRY(input_shape(api, context, SOURCE, sizes, MOST_DIMENSIONS, &rank, &type));
    TRY(input_data(api, context, SOURCE, &source));
    TRY(input_data(api, context, BIAS, &bias));
    TRY(input_data(api, context, ORDER, &order));
    if (order)
        return create_status(api)(NOT_IMPLEMENTED, "MatMulNBits: g_idx isn't read here");
    const int64_t rows = rows_of(sizes, rank);
    sizes[rank - 1] = matmul->weights.outputs;
    TRY(output_data(api, context, 0, sizes, rank, &result));
    Product product = {.weights = matmul->weights, .rows = rows};
    if (rows == 0)
        return NULL;
    if (type == FLOAT16)
        return multiply_halves(matmul, context, source, bias, result, &product);
    product.source = source;
    product.bias = bias;
    product.result = result;
    return multiply(matmul, context, &product);
}

/* ---- Signature ---- */

static const char *name(const CustomOp *op) {
    (void)op;
    return "MatMulNBits";
}

static size_t input_count(const CustomOp *op) {
    (void)op;
    return INPUTS;
}

static Characteristic input_characteristic(const CustomOp *op, size_t index) {
    (void)op;
    return index <= SCALES ? REQUIRED : OPTIONAL;
}

static ElementType float_input(const CustomOp *op, size_t index) {
    (void)op;
    static const ElementType types[INPUTS] = {FLOAT, UINT8, FLOAT, UINT8, INT32, FLOAT};
    return types[index];
}

static ElementType float_output(const CustomOp *op, size_t index) {
    (void)op, (void)index;
    return FLOAT;
}

static ElementType half_input(const CustomOp *op, size_t index) {
    const ElementType type = float_input(op, index);
    return type == FLOAT ? FLOAT16 : type;
}

static ElementType half_output(const CustomOp *op, size_t index) {
    (void)op, (void)index;
    return FLOAT16;
}

#define MATMUL_N_BITS(input_type, output_type)                                                     \
    {OPERATOR_ON_THE_CPU,                                                                          \
     .get_output_count = one_output,                                                               \
     .get_name = name,                                                                             \
     .get_input_type = input_type,                                                                 \
     .get_input_count = input_count,                                                               \
     .get_output_type = output_type,                                                               \
     .get_input_characteristic = input_characteristic,                                             \
     .create_kernel = create,                                                                      \
     .destroy_kernel = destroy,                                                                    \
     .compute = compute}

const CustomOp float_matmul_n_bits = MATMUL_N_BITS(float_input, float_output);
const CustomOp half_matmul_n_bits = MATMUL_N_BITS(half_input, half_output);
