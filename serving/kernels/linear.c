/* This project's operators Linear, LinearGelu and LinearAdd: rows times weights [outputs, inputs]
 * plus a bias, and then GELU or the addition of a residual. Graphs define them as functions for
 * where these kernels aren't.
 *
 * Weights are packed when a model is opened: encoders run many rows, and read no weights twice.
 */
#include "linear.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "operators.h"

enum { SOURCE, WEIGHTS, BIAS, RESIDUAL, INPUTS };

#define MOST_DIMENSIONS 8
/* Rows of a block, and bytes of it: it stays in the second cache beside a tile of weights. */
#define BLOCK_ROWS 96
#define BLOCK_BYTES (1 << 19)
/* Blocks that are tasks enough; of fewer, columns are divided into parts too. */
#define MANY_BLOCKS 8
#define FEWEST_TASKS 12
#define HUGE_PAGE (1 << 21)
/* Numbers that a row may be padded with. */
#define PADDING 16

typedef enum { PLAIN, GELU, ADD } Kind;

/* An operator, its place first, so that one points to the other. */
typedef struct {
    CustomOp op;
    Kind kind;
} LinearOp;

typedef struct {
    const Api *api;
    const LinearKernels *kernels;
    int64_t inputs, outputs;
    float *weights;
    const float *bias;
    bool is_gelu;
} Layer;

/* One run of a layer: blocks of rows times parts of the columns. */
typedef struct {
    const Layer *layer;
    const KernelContext *context;
    Linear whole;
    int64_t block_rows, blocks, part_tiles, parts;
    Status *failure;
} Run;

/* ---- Opening ---- */

static Status *pack_weights(Layer *layer, const float *weights) {
    const int64_t tiles = pieces_of(layer->outputs, layer->kernels->tile_columns);
    const int64_t size = layer->kernels->tile_size(layer->inputs);
    const size_t bytes = tiles * size * sizeof(float);
    void *packed;
    if (posix_memalign(&packed, bytes >= HUGE_PAGE ? HUGE_PAGE : 64, bytes))
        return create_status(layer->api)(FAIL, "Linear: out of memory");
#ifdef MADV_HUGEPAGE
    madvise(packed, bytes, MADV_HUGEPAGE);
#endif
    layer->weights = packed;
    for (int64_t tile = 0; tile < tiles; tile++)
        layer->kernels->pack_tile(weights, layer->outputs, layer->inputs, tile,
                                  layer->weights + tile * size);
    return NULL;
}

static Status *read_weights(Layer *layer, const KernelInfo *info) {
    const void *weights, *bias;
    int64_t sizes[2];
    TRY(constant_tensor(layer->api, info, WEIGHTS, &weights, NULL));
    TRY(constant_tensor(layer->api, info, BIAS, &bias, NULL));
    if (!weights || !bias)
        return create_status(layer->api)(NOT_IMPLEMENTED, "Linear: weights must be constant");
    TRY(constant_shape(layer->api, info, WEIGHTS, sizes, 2));
    layer->outputs = sizes[0];
    layer->inputs = sizes[1];
    layer->bias = bias;
    return pack_weights(layer, weights);
}

static void destroy(void *kernel) {
    Layer *layer = kernel;
    free(layer->weights);
    free(layer);
}

static Status *create(const CustomOp *op, const Api *api, const KernelInfo *info, void **kernel) {
    Layer *layer = calloc(1, sizeof *layer);
    if (!layer)
        return create_status(api)(FAIL, "Linear: out of memory");
    layer->api = api;
    layer->kernels =
        instruction_set_in_use() == AVX512 ? &linear_kernels_avx512 : &linear_kernels_avx2;
    layer->is_gelu = ((const LinearOp *)op)->kind == GELU;
    Status *status = read_weights(layer, info);
    if (status)
        destroy(layer);
    else
        *kernel = layer;
    return status;
}

/* ---- Running ---- */

/* Numbers of a block of rows in groups, which may have more rows than the block and padding. */
static int64_t block_size(const Run *run) {
    return (run->block_rows + run->layer->kernels->group_rows) * (run->layer->inputs + PADDING);
}

static Linear block_of(const Run *run, int64_t block, float *grouped) {
    Linear linear = run->whole;
    linear.first = block * run->block_rows;
    linear.last = smaller_of(linear.first + run->block_rows, linear.rows);
    linear.grouped = grouped;
    return linear;
}

static void fill_block(void *data, size_t block) {
    const Run *run = data;
    const Linear linear = block_of(run, block, run->whole.grouped + block * block_size(run));
    run->layer->kernels->fill_groups(&linear);
}

static void multiply_part(void *data, size_t task) {
    const Run *run = data;
    const int64_t block = task / run->parts, part = task % run->parts;
    Linear linear = block_of(run, block, run->whole.grouped + block * block_size(run));
    linear.first_tile = part * run->part_tiles;
    linear.tiles = smaller_of(run->part_tiles, run->whole.tiles - linear.first_tile);
    run->layer->kernels->multiply_tiles(&linear);
}

static void multiply_block(void *data, size_t block) {
    Run *run = data;
    const Api *api = run->layer->api;
    Scratch scratch;
    Status *status = take_scratch(api, run->context, block_size(run) * sizeof(float), &scratch);
    if (status) {
        keep_first(api, &run->failure, status);
        return;
    }
    const Linear linear = block_of(run, block, scratch.memory);
    run->layer->kernels->fill_groups(&linear);
    run->layer->kernels->multiply_tiles(&linear);
    return_scratch(api, &scratch);
}

static Status *multiply_many(Run *run) {
    const Api *api = run->layer->api;
    Status *status = parallel_for(api)(run->context, multiply_block, run->blocks, 0, run);
    keep_first(api, &run->failure, status);
    return run->failure;
}

static Status *multiply_few(Run *run) {
    const Api *api = run->layer->api;
    const int64_t parts = smaller_of(pieces_of(FEWEST_TASKS, run->blocks), run->whole.tiles);
    run->part_tiles = pieces_of(run->whole.tiles, parts);
    run->parts = pieces_of(run->whole.tiles, run->part_tiles);
    Scratch scratch;
    TRY(take_scratch(api, run->context, run->blocks * block_size(run) * sizeof(float), &scratch));
    run->whole.grouped = scratch.memory;
    Status *status = NULL;
    if (run->blocks == 1)
        fill_block(run, 0);
    else
        status = parallel_for(api)(run->context, fill_block, run->blocks, 0, run);
    if (!status)
        status = parallel_for(api)(run->context, multiply_part, run->blocks * run->parts, 0, run);
    return_scratch(api, &scratch);
    return status;
}

static Status *run_layer(const Layer *layer, const KernelContext *context, const Linear *whole) {
    Run run = {.layer = layer, .context = context, .whole = *whole};
    const int64_t group = layer->kernels->group_rows;
    const int64_t fitting = BLOCK_BYTES / sizeof(float) / layer->inputs;
    run.block_rows = larger_of(1, smaller_of(fitting, BLOCK_ROWS) / group) * group;
    run.blocks = pieces_of(whole->rows, run.block_rows);
    return run.blocks < MANY_BLOCKS ? multiply_few(&run) : multiply_many(&run);
}

static Status *check_residual(const Layer *layer, const KernelContext *context,
                              const int64_t *sizes, size_t rank) {
    int64_t given[MOST_DIMENSIONS];
    size_t given_rank;
    ElementType type;
    TRY(input_shape(layer->api, context, RESIDUAL, given, MOST_DIMENSIONS, &given_rank, &type));
    const bool fits = given_rank == rank && !memcmp(given, sizes, rank * sizeof *sizes);
    return fits ? NULL
                : create_status(layer->api)(FAIL, "Linear: the residual doesn't fit the rows");
}

static Status *compute(void *kernel, KernelContext *context) {
    const Layer *layer = kernel;
    const Api *api = layer->api;
    int64_t sizes[MOST_DIMENSIONS];
    size_t rank;
    ElementType type;
    const void *source, *residual;
    void *result;
    TRY(input_shape(api, context, SOURCE, sizes, MOST_DIMENSIONS, &rank, &type));
    TRY(input_data(api, context, SOURCE, &source));
    TRY(input_data(api, context, RESIDUAL, &residual));
    if (sizes[rank - 1] != layer->inputs)
        return create_status(api)(FAIL, "Linear: the weights don't fit the rows");
    sizes[rank - 1] = layer->outputs;
    if (residual)
        TRY(check_residual(layer, context, sizes, rank));
    TRY(output_data(api, context, 0, sizes, rank, &result));
    const Linear whole = {.rows = rows_of(sizes, rank),
                          .inputs = layer->inputs,
                          .outputs = layer->outputs,
                          .source = source,
                          .weights = layer->weights,
                          .bias = layer->bias,
                          .residual = residual,
                          .result = result,
                          .is_gelu = layer->is_gelu,
                          .tiles = pieces_of(layer->outputs, layer->kernels->tile_columns)};
    return whole.rows ? run_layer(layer, context, &whole) : NULL;
}

/* ---- Signature ---- */

static const char *name(const CustomOp *op) {
    static const char *const names[] = {
        [PLAIN] = "Linear", [GELU] = "LinearGelu", [ADD] = "LinearAdd"};
    return names[((const LinearOp *)op)->kind];
}

static size_t input_count(const CustomOp *op) {
    return ((const LinearOp *)op)->kind == ADD ? INPUTS : RESIDUAL;
}

static ElementType is_float(const CustomOp *op, size_t index) {
    (void)op, (void)index;
    return FLOAT;
}

#define LINEAR_OP(this_kind)                                                                       \
    {.op = {OPERATOR_ON_THE_CPU, .get_output_count = one_output, .get_name = name,                 \
            .get_input_type = is_float, .get_input_count = input_count,                            \
            .get_output_type = is_float, .get_input_characteristic = required,                     \
            .create_kernel = create, .destroy_kernel = destroy, .compute = compute},               \
     .kind = this_kind}

static const LinearOp linear_op = LINEAR_OP(PLAIN);
static const LinearOp linear_gelu_op = LINEAR_OP(GELU);
static const LinearOp linear_add_op = LINEAR_OP(ADD);

const CustomOp *const linear = &linear_op.op;
const CustomOp *const linear_gelu = &linear_gelu_op.op;
const CustomOp *const linear_add = &linear_add_op.op;
