/* Registering the operators with an ONNX Runtime session.
 *
 * ONNX Runtime takes a registered kernel before its own of the same name and domain: graphs are the
 * same with and without this library.
 */
#include "operators.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#define EXPORTED __attribute__((visibility("default")))

InstructionSet instruction_set_in_use(void) {
    const char *choice = getenv("EXPORT_LLM_KERNELS");
    const bool is_avx2 = choice && strcmp(choice, "avx2") == 0;
    __builtin_cpu_init();
    if (!is_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512vnni"))
        return AVX512;
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? AVX2 : NONE;
}

/* The name of the instruction set in use, or NULL where the kernels have none for this processor.
 */
EXPORTED const char *instruction_set(void) {
    static const char *const names[] = {[NONE] = NULL, [AVX2] = "AVX2", [AVX512] = "AVX-512 VNNI"};
    return names[instruction_set_in_use()];
}

static MemoryInfo *arena;

/* Operators that stand in for ONNX Runtime's, by whether all floats and whether the cache's are of
 * 32 bits, and functions of our own. Options of sessions keep the domains that are added to them,
 * and nothing tells when they go: each ONNX Runtime in the process has one set of them for good. */
typedef struct Domains {
    const Api *api;
    OpDomain *standing_in[2][2], *own;
    struct Domains *older;
} Domains;

/* A registered operator hides ONNX Runtime's for other types. */
static Status *create_standing_in(const Api *api, bool is_float32, bool has_float32_cache,
                                  OpDomain **domain) {
    TRY(create_domain(api)("com.microsoft", domain));
    TRY(add_to_domain(api)(*domain, &float_matmul_n_bits));
    TRY(add_to_domain(api)(*domain, &half_matmul_n_bits));
    if (is_float32) {
        TRY(add_to_domain(api)(*domain, &fused_matmul));
        TRY(add_to_domain(api)(*domain, fast_gelu));
    }
    return has_float32_cache ? add_to_domain(api)(*domain, &group_query_attention) : NULL;
}

/* Graphs have functions of these names: without the kernels, ONNX Runtime runs their bodies. */
static Status *create_own(const Api *api, OpDomain **domain) {
    TRY(create_domain(api)("export_llm", domain));
    TRY(add_to_domain(api)(*domain, ge_glu));
    TRY(add_to_domain(api)(*domain, swi_glu));
    TRY(add_to_domain(api)(*domain, encoder_attention));
    TRY(add_to_domain(api)(*domain, packed_encoder_attention));
    return add_linear_operators(api, *domain);
}

static Status *create_domains(const Api *api, Domains *domains) {
    for (int i = 0; i < 4; i++)
        TRY(create_standing_in(api, i / 2, i % 2, &domains->standing_in[i / 2][i % 2]));
    return create_own(api, &domains->own);
}

static void release_domains(const Api *api, Domains *domains) {
    for (int i = 0; i < 4; i++)
        release_domain(api)(domains->standing_in[i / 2][i % 2]);
    release_domain(api)(domains->own);
    free(domains);
}

/* The domains of this ONNX Runtime, made by the first who asks. */
static Status *find_domains(const Api *api, const Domains **found) {
    static Domains *newest;
    for (*found = newest; *found; *found = (*found)->older)
        if ((*found)->api == api)
            return NULL;
    Domains *created = calloc(1, sizeof *created);
    if (!created)
        return create_status(api)(FAIL, "there is no memory for the kernels' operators");
    Status *status = create_domains(api, created);
    if (status) {
        release_domains(api, created);
        return status;
    }
    created->api = api;
    created->older = newest;
    *found = newest = created;
    return NULL;
}

static Status *take_domains(const Api *api, const Domains **domains) {
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    pthread_mutex_lock(&lock);
    Status *status = arena ? NULL : cpu_memory_info(api)(ARENA, 0, &arena);
    if (!status)
        status = find_domains(api, domains);
    pthread_mutex_unlock(&lock);
    return status;
}

/* What ONNX Runtime calls; the name is its own. */
EXPORTED Status *RegisterCustomOps(SessionOptions *options, const ApiBase *base) {
    const Api *api = base->get_api(VERSION_WITH_PARALLEL_FOR);
    const Domains *domains;
    int is_float32 = 0, has_float32_cache = 0;
    TRY(take_domains(api, &domains));
    TRY(has_entry(api)(options, "export_llm.float32", &is_float32));
    TRY(has_entry(api)(options, "export_llm.float32_cache", &has_float32_cache));
    TRY(add_domain(api)(options, domains->standing_in[is_float32 != 0][has_float32_cache != 0]));
    return add_domain(api)(options, domains->own);
}

static Status *data_and_type(const Api *api, const Value *value, const void **data,
                             ElementType *type) {
    void *found;
    TRY(tensor_data(api)(value, &found));
    *data = found;
    if (!type)
        return NULL;
    TensorInfo *info;
    TRY(tensor_info(api)(value, &info));
    Status *status = element_type(api)(info, type);
    release_tensor_info(api)(info);
    return status;
}

Status *constant_tensor(const Api *api, const KernelInfo *info, size_t index, const void **data,
                        ElementType *type) {
    size_t count;
    int is_constant = 0;
    const Value *value = NULL;
    *data = NULL;
    TRY(node_input_count(api)(info, &count));
    if (index < count)
        TRY(constant_input(api)(info, index, &is_constant, &value));
    return is_constant && value ? data_and_type(api, value, data, type) : NULL;
}

static Status *shape_of(const Api *api, const Value *value, int64_t *sizes, size_t most,
                        size_t *rank, ElementType *type) {
    TensorInfo *info;
    TRY(tensor_info(api)(value, &info));
    Status *status = element_type(api)(info, type);
    if (!status)
        status = dimension_count(api)(info, rank);
    if (!status && (*rank == 0 || *rank > most))
        status = create_status(api)(FAIL, "a tensor has too few or too many dimensions");
    if (!status)
        status = dimensions(api)(info, sizes, *rank);
    release_tensor_info(api)(info);
    return status;
}

Status *constant_shape(const Api *api, const KernelInfo *info, size_t index, int64_t *sizes,
                       size_t rank) {
    const Value *value = NULL;
    int is_constant = 0;
    size_t found = 0;
    ElementType type;
    TRY(constant_input(api)(info, index, &is_constant, &value));
    if (is_constant && value)
        TRY(shape_of(api, value, sizes, rank, &found, &type));
    return found == rank
               ? NULL
               : create_status(api)(FAIL, "a constant has too few or too many dimensions");
}

Status *input_data(const Api *api, const KernelContext *context, size_t index, const void **data) {
    size_t count;
    const Value *value = NULL;
    *data = NULL;
    TRY(kernel_input_count(api)(context, &count));
    if (index < count)
        TRY(kernel_input(api)(context, index, &value));
    return value ? data_and_type(api, value, data, NULL) : NULL;
}

Status *input_shape(const Api *api, const KernelContext *context, size_t index, int64_t *sizes,
                    size_t most, size_t *rank, ElementType *type) {
    const Value *value;
    TRY(kernel_input(api)(context, index, &value));
    return shape_of(api, value, sizes, most, rank, type);
}

Status *output_data(const Api *api, KernelContext *context, size_t index, const int64_t *sizes,
                    size_t rank, void **data) {
    Value *value;
    TRY(kernel_output(api)(context, index, sizes, rank, &value));
    return tensor_data(api)(value, data);
}

/* ONNX Runtime makes an error of an attribute that a node doesn't have. */
int64_t int_or(const Api *api, const KernelInfo *info, const char *name, int64_t otherwise) {
    int64_t value = otherwise;
    release_status(api)(int_attribute(api)(info, name, &value));
    return value;
}

float float_or(const Api *api, const KernelInfo *info, const char *name, float otherwise) {
    float value = otherwise;
    release_status(api)(float_attribute(api)(info, name, &value));
    return value;
}

Status *take_scratch(const Api *api, const KernelContext *context, size_t bytes, Scratch *scratch) {
    TRY(kernel_allocator(api)(context, arena, &scratch->allocator));
    Status *status = allocate(api)(scratch->allocator, bytes, &scratch->memory);
    if (status)
        release_allocator(api)(scratch->allocator);
    return status;
}

void return_scratch(const Api *api, Scratch *scratch) {
    release_status(api)(deallocate(api)(scratch->allocator, scratch->memory));
    release_allocator(api)(scratch->allocator);
}

void keep_first(const Api *api, Status **kept, Status *status) {
    Status *none = NULL;
    if (status && !__atomic_compare_exchange_n(kept, &none, status, false, __ATOMIC_ACQ_REL,
                                               __ATOMIC_ACQUIRE))
        release_status(api)(status);
}

const char *on_the_cpu(const CustomOp *op) {
    (void)op;
    return NULL;
}

size_t one_output(const CustomOp *op) {
    (void)op;
    return 1;
}

Characteristic required(const CustomOp *op, size_t index) {
    (void)op, (void)index;
    return REQUIRED;
}

int default_memory(const CustomOp *op, size_t index) {
    (void)op, (void)index;
    return 0;
}

int no_variadic(const CustomOp *op) {
    (void)op;
    return 0;
}

int first_version(const CustomOp *op) {
    (void)op;
    return 1;
}

int last_version(const CustomOp *op) {
    (void)op;
    return INT32_MAX;
}
