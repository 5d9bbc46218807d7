/* This project's operators Linear, LinearGelu and LinearAdd: rows times weights [outputs, inputs]
 * plus a bias, and then GELU or the addition of a residual; and the same of IntegerLinear, whose
 * weights are those of MatMulNBits. Graphs define them as functions for where these kernels aren't.
 *
 * Weights are packed when a model is opened: encoders run many rows, and read no weights twice.
 */
#include "linear.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "operators.h"

/* Inputs; those behind the weights come one place later where the weights have scales. */
enum { SOURCE, WEIGHTS, BIAS, RESIDUAL, INPUTS, SCALES = BIAS };

#define MOST_DIMENSIONS 8
/* Rows of a block, and bytes of it: it stays in the second cache beside a tile of weights. */
#define BLOCK_ROWS 96
#define BLOCK_BYTES (1 << 19)
/* Blocks that are tasks enough; of fewer, columns are divided into parts too. */
#define MANY_BLOCKS 8
#define FEWEST_TASKS 12
#define HUGE_PAGE (1 << 21)

typedef enum { PLAIN, GELU, ADD } Kind;

/* An operator, its place first, so that one points to the other. */
typedef struct {
    CustomOp op;
    Kind kind;
    bool is_integer;
} LinearOp;

typedef struct {
    const Api *api;
    const LinearKernels *kernels;
    LinearWeights weights;
    uint8_t *packed;
    const float *bias;
    bool is_gelu, is_integer;
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

static Status *pack_weights(Layer *layer) {
    const LinearWeights *weights = &layer->weights;
    const int64_t tiles = pieces_of(weights->outputs, layer->kernels->tile_columns);
    const int64_t tile_bytes = layer->kernels->tile_bytes(weights);
    const size_t bytes = tiles * tile_bytes;
    void *packed;
    if (posix_memalign(&packed, bytes >= HUGE_PAGE ? HUGE_PAGE : 64, bytes))
        return create_status(layer->api)(FAIL, "Linear: out of memory");
#ifdef MADV_HUGEPAGE
    madvise(packed, bytes, MADV_HUGEPAGE);
#endif
    layer->packed = packed;
    for (int64_t tile = 0; tile < tiles; tile++)
        layer->kernels->pack_tile(weights, tile, layer->packed + tile * tile_bytes);
    return NULL;
}

static Status *read_integer_shape(Layer *layer, const KernelInfo *info) {
    LinearWeights *weights = &layer->weights;
    TRY(int_attribute(layer->api)(info, "K", &weights->inputs));
    TRY(int_attribute(layer->api)(info, "N", &weights->outputs));
    TRY(int_attribute(layer->api)(info, "block_size", &weights->block));
    if (weights->block != 64 && weights->block != 128 && weights->block != 256)
        return create_status(layer->api)(NOT_IMPLEMENTED, "IntegerLinear: blocks of 64 to 256 are "
                                                          "what export-llm's kernels have");
    return NULL;
}

static Status *read_float_shape(Layer *layer, const KernelInfo *info) {
    int64_t sizes[2];
    TRY(constant_shape(layer->api, info, WEIGHTS, sizes, 2));
    layer->weights.outputs = sizes[0];
    layer->weights.inputs = sizes[1];
    return NULL;
}

static Status *read_weights(Layer *layer, const KernelInfo *info) {
    const void *bias, *scales = NULL;
    TRY(constant_tensor(layer->api, info, WEIGHTS, &layer->weights.numbers, NULL));
    TRY(constant_tensor(layer->api, info, BIAS + layer->is_integer, &bias, NULL));
    if (layer->is_integer)
        TRY(constant_tensor(layer->api, info, SCALES, &scales, NULL));
    if (!layer->weights.numbers || !bias || (layer->is_integer && !scales))
        return create_status(layer->api)(NOT_IMPLEMENTED, "Linear: weights must be constant");
    layer->weights.scales = scales;
    layer->bias = bias;
    TRY((layer->is_integer ? read_integer_shape : read_float_shape)(layer, info));
    return pack_weights(layer);
}

static void destroy(void *kernel) {
    Layer *layer = kernel;
    free(layer->packed);
    free(layer);
}

static const LinearKernels *kernels_for(bool is_integer) {
    if (instruction_set_in_use() == AVX512)
        return is_integer ? &integer_linear_kernels_avx512 : &linear_kernels_avx512;
    return is_integer ? &integer_linear_kernels_avx2 : &linear_kernels_avx2;
}

static Status *create(const CustomOp *op, const Api *api, const KernelInfo *info, void **kernel) {
    Layer *layer = calloc(1, sizeof *layer);
    if (!layer)
        return create_status(api)(FAIL, "Linear: out of memory");
    layer->api = api;
    layer->is_integer = ((const LinearOp *)op)->is_integer;
    layer->is_gelu = ((const LinearOp *)op)->kind == GELU;
    layer->kernels = kernels_for(layer->is_integer);
    Status *status = read_weights(layer, info);
    if (status)
        destroy(layer);
    else
        *kernel = layer;
    return status;
}

/* ---- Running ---- */

/* Bytes of a block of rows in groups: the last group may have more rows than are left. */
static int64_t block_bytes(const Run *run) {
    const LinearKernels *kernels = run->layer->kernels;
    return (run->block_rows + kernels->group_rows) * kernels->row_bytes(&run->layer->weights);
}

static Linear block_of(const Run *run, int64_t block, uint8_t *grouped) {
    Linear linear = run->whole;
    linear.first = block * run->block_rows;
    linear.last = smaller_of(linear.first + run->block_rows, linear.rows);
    linear.grouped = grouped;
    return linear;
}

static void fill_block(void *data, size_t block) {
    const Run *run = data;
    const Linear linear = block_of(run, block, run->whole.grouped + block * block_bytes(run));
    run->layer->kernels->fill_groups(&linear);
}

static void multiply_part(void *data, size_t task) {
    const Run *run = data;
    const int64_t block = task / run->parts, part = task % run->parts;
    Linear linear = block_of(run, block, run->whole.grouped + block * block_bytes(run));
    linear.first_tile = part * run->part_tiles;
    linear.tiles = smaller_of(run->part_tiles, run->whole.tiles - linear.first_tile);
    run->layer->kernels->multiply_tiles(&linear);
}

static void multiply_block(void *data, size_t block) {
    Run *run = data;
    const Api *api = run->layer->api;
    Scratch scratch;
    Status *status = take_scratch(api, run->context, block_bytes(run), &scratch);
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
    TRY(take_scratch(api, run->context, run->blocks * block_bytes(run), &scratch));
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
    const int64_t fitting = BLOCK_BYTES / layer->kernels->row_bytes(&layer->weights);
    run.block_rows = larger_of(1, smaller_of(fitting, BLOCK_ROWS) / group) * group;
    run.blocks = pieces_of(whole->rows, run.block_rows);
    return run.blocks < MANY_BLOCKS ? multiply_few(&run) : multiply_many(&run);
}

static Status *check_residual(const Layer *layer, const KernelContext *context,
                              const int64_t *sizes, size_t rank) {
    int64_t given[MOST_DIMENSIONS];
    size_t given_rank;
    ElementType type;
    TRY(input_shape(layer->api, context, RESIDUAL + layer->is_integer, given, MOST_DIMENSIONS,
                    &given_rank, &type));
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
    TRY(input_data(api, context, RESIDUAL + layer->is_integer, &residual));
    if (sizes[rank - 1] != layer->weights.inputs)
        return create_status(api)(FAIL, "Linear: the weights don't fit the rows");
    sizes[rank - 1] = layer->weights.outputs;
    if (residual)
        TRY(check_residual(layer, context, sizes, rank));
    TRY(output_data(api, context, 0, sizes, rank, &result));
    const Linear whole = {.rows = rows_of(sizes, rank),
                          .weights = layer->weights,
                          .packed = layer->packed,
                          .source = source,
                          .bias = layer->bias,
                          .residual = residual,
                          .result = result,
                          .is_gelu = layer->is_gelu,
                          .tiles = pieces_of(layer->weights.outputs, layer->kernels->tile_columns)};
    return whole.rows ? run_layer(layer, context, &whole) : NULL;
}

/* ---- Signature ---- */

static const char *name(const CustomOp *op) {
    static const char *const names[2][3] = {
        {[PLAIN] = "Linear", [GELU] = "LinearGelu", [ADD] = "LinearAdd"},
        {[PLAIN] = "IntegerLinear", [GELU] = "IntegerLinearGelu", [ADD] = "IntegerLinearAdd"}};
    const LinearOp *own = (const LinearOp *)op;
    return names[own->is_integer][own->kind];
}

static size_t input_count(const CustomOp *op) {
    const LinearOp *own = (const LinearOp *)op;
    return (own->kind == ADD ? INPUTS : RESIDUAL) + own->is_integer;
}

static ElementType input_type(const CustomOp *op, size_t index) {
    return ((const LinearOp *)op)->is_integer && index == WEIGHTS ? UINT8 : FLOAT;
}

static ElementType output_type(const CustomOp *op, size_t index) {
    (void)op, (void)index;
    return FLOAT;
}

#define LINEAR_OP(this_kind, integer)                                                              \
    {.op = {OPERATOR_ON_THE_CPU, .get_output_count = one_output, .get_name = name,                 \
            .get_input_type = input_type, .get_input_count = input_count,                          \
            .get_output_type = output_type, .get_input_characteristic = required,                  \
            .create_kernel = create, .destroy_kernel = destroy, .compute = compute},               \
     .kind = this_kind,                                                                            \
     .is_integer = integer}

static const LinearOp operators[] = {LINEAR_OP(PLAIN, false), LINEAR_OP(GELU, false),
                                     LINEAR_OP(ADD, false),   LINEAR_OP(PLAIN, true),
                                     LINEAR_OP(GELU, true),   LINEAR_OP(ADD, true)};

Status *add_linear_operators(const Api *api, OpDomain *domain) {
    for (size_t i = 0; i < sizeof operators / sizeof *operators; i++)
        TRY(add_to_domain(api)(domain, &operators[i].op));
    return NULL;
}
