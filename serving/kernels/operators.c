/* What the operators here have in common. */
#include "operators.h"

#include <stdlib.h>
#include <string.h>

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

static MemoryInfo *arena;

Status *find_arena(const Api *api) { return arena ? NULL : cpu_memory_info(api)(ARENA, 0, &arena); }

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
