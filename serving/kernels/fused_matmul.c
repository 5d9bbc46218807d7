/* ONNX Runtime's operator FusedMatMul, for rows times weights stored [outputs, inputs].
 *
 * Its own kernel copies weights into another layout, at every step or, when a model is opened, for
 * good. Ours reads them where the file is mapped.
 */
#include <stdlib.h>

#include "float_product.h"
#include "operators.h"

enum { SOURCE, WEIGHTS, INPUTS };

/* Rows from which it pays to transpose tiles of weights. */
#define MANY_ROWS 8
/* Parts below which a product is hard to divide among threads. */
#define FEWEST_PARTS 12
#define MOST_DIMENSIONS 8

typedef struct {
    const Api *api;
    const FloatKernels *kernels;
    const float *weights;
} MatMul;

/* ---- Opening ---- */

/* Whether rows are multiplied with rows, and nothing else is done. */
static bool is_rows_times_rows(const Api *api, const KernelInfo *info) {
    return int_or(api, info, "transB", 0) && !int_or(api, info, "transA", 0) &&
           !int_or(api, info, "transBatchA", 0) && !int_or(api, info, "transBatchB", 0) &&
           float_or(api, info, "alpha", 1) == 1;
}

static Status *read_weights(MatMul *matmul, const KernelInfo *info) {
    const void *weights;
    TRY(constant_tensor(matmul->api, info, WEIGHTS, &weights, NULL));
    if (!weights || !is_rows_times_rows(matmul->api, info))
        return create_status(matmul->api)(NOT_IMPLEMENTED,
                                          "FusedMatMul: rows times constant weights [out, in] are "
                                          "what export-llm's kernels have");
    matmul->weights = weights;
    return NULL;
}

static Status *create(const CustomOp *op, const Api *api, const KernelInfo *info, void **kernel) {
    (void)op;
    MatMul *matmul = calloc(1, sizeof *matmul);
    if (!matmul)
        return create_status(api)(FAIL, "FusedMatMul: out of memory");
    matmul->api = api;
    matmul->kernels =
        instruction_set_in_use() == AVX512 ? &float_kernels_avx512 : &float_kernels_avx2;
    Status *status = read_weights(matmul, info);
    if (status)
        free(matmul);
    else
        *kernel = matmul;
    return status;
}

/* ---- Running ---- */

static Status *multiply_many(const MatMul *matmul, const KernelContext *context,
                             FloatProduct *product) {
    const FloatKernels *kernels = matmul->kernels;
    const int64_t groups = pieces_of(product->rows, kernels->group_rows);
    const int64_t tiles = pieces_of(product->outputs, kernels->tile_columns);
    product->part_tiles = larger_of(1, smaller_of(MOST_PART_TILES, tiles / FEWEST_PARTS));
    const int64_t parts = pieces_of(tiles, product->part_tiles);
    const size_t group = product->inputs * kernels->group_rows + GROUP_MARGIN;
    Scratch scratch;
    TRY(take_scratch(matmul->api, context, groups * group * sizeof(float), &scratch));
    product->grouped = scratch.memory;
    Status *status = parallel_for(matmul->api)(context, kernels->fill_group, groups, 0, product);
    if (!status)
        status = parallel_for(matmul->api)(context, kernels->multiply_tiles, parts, 0, product);
    return_scratch(matmul->api, &scratch);
    return status;
}

static Status *compute(void *kernel, KernelContext *context) {
    const MatMul *matmul = kernel;
    const Api *api = matmul->api;
    int64_t sizes[MOST_DIMENSIONS], weight_sizes[2];
    size_t rank;
    ElementType type;
    const void *source;
    void *result;
    TRY(input_shape(api, context, SOURCE, sizes, MOST_DIMENSIONS, &rank, &type));
    TRY(input_data(api, context, SOURCE, &source));
    FloatProduct product = {
        .rows = rows_of(sizes, rank), .inputs = sizes[rank - 1], .weights = matmul->weights};
    size_t weight_rank;
    TRY(input_shape(api, context, WEIGHTS, weight_sizes, 2, &weight_rank, &type));
    if (weight_rank != 2 || weight_sizes[1] != product.inputs)
        return create_status(api)(FAIL, "FusedMatMul: the weights don't fit the rows");
    product.outputs = sizes[rank - 1] = weight_sizes[0];
    TRY(output_data(api, context, 0, sizes, rank, &result));
    product.source = source;
    product.result = result;
    if (product.rows >= MANY_ROWS)
        return multiply_many(matmul, context, &product);
    const int64_t parts = pieces_of(product.outputs, FLOAT_PART_COLUMNS);
    return parallel_for(api)(context, matmul->kernels->multiply_few, parts, 0, &product);
}

/* ---- Signature ---- */

static const char *name(const CustomOp *op) {
    (void)op;
    return "FusedMatMul";
}

static size_t input_count(const CustomOp *op) {
    (void)op;
    return INPUTS;
}

static ElementType is_float(const CustomOp *op, size_t index) {
    (void)op, (void)index;
    return FLOAT;
}

const CustomOp fused_matmul = {
    OPERATOR_ON_THE_CPU,
    .get_output_count = one_output,
    .get_name = name,
    .get_input_type = is_float,
    .get_input_count = input_count,
    .get_output_type = is_float,
    .get_input_characteristic = required,
    .create_kernel = create,
    .destroy_kernel = free,
    .compute = compute,
};
