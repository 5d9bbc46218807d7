/* What the operators here have in common. */
#pragma once

#include <stdbool.h>

#include "onnxruntime_abi.h"
#include "sizes.h"

#define TRY(call)                                                                                  \
    do {                                                                                           \
        Status *status_ = (call);                                                                  \
        if (status_)                                                                               \
            return status_;                                                                        \
    } while (0)

extern const CustomOp float_matmul_n_bits, half_matmul_n_bits, fused_matmul, group_query_attention;
extern const CustomOp *const fast_gelu, *const ge_glu, *const swi_glu;
extern const CustomOp *const encoder_attention, *const packed_encoder_attention;

/* Linear and IntegerLinear, with what may follow them. */
Status *add_linear_operators(const Api *api, OpDomain *domain);

/* Find ONNX Runtime's arena, which scratch is taken from; once before any kernel is made. */
Status *find_arena(const Api *api);

typedef enum { NONE, AVX2, AVX512 } InstructionSet;

/* What this processor has and EXPORT_LLM_KERNELS doesn't forbid. */
InstructionSet instruction_set_in_use(void);

/* A constant input's data and, unless NULL is given for it, its type; NULL where it isn't given. */
Status *constant_tensor(const Api *api, const KernelInfo *info, size_t index, const void **data,
                        ElementType *type);

/* A constant input's shape, which must have `rank` dimensions. */
Status *constant_shape(const Api *api, const KernelInfo *info, size_t index, int64_t *sizes,
                       size_t rank);

/* An input's data, NULL where it isn't given. */
Status *input_data(const Api *api, const KernelContext *context, size_t index, const void **data);

/* An input's shape and type. Fails where it has no dimension, or more than `most`. */
Status *input_shape(const Api *api, const KernelContext *context, size_t index, int64_t *sizes,
                    size_t most, size_t *rank, ElementType *type);

/* Rows of a tensor of this shape, its last dimension being what a row has. */
static inline int64_t rows_of(const int64_t *sizes, size_t rank) {
    int64_t rows = 1;
    for (size_t i = 0; i + 1 < rank; i++)
        rows *= sizes[i];
    return rows;
}

/* An output's data, of this shape. */
Status *output_data(const Api *api, KernelContext *context, size_t index, const int64_t *sizes,
                    size_t rank, void **data);

/* A node's attribute, or what it is otherwise. */
int64_t int_or(const Api *api, const KernelInfo *info, const char *name, int64_t otherwise);
float float_or(const Api *api, const KernelInfo *info, const char *name, float otherwise);

/* Memory of the session's arena, for one run of a kernel. What comes from malloc would get its
 * pages anew each time. */
typedef struct {
    Allocator *allocator;
    void *memory;
} Scratch;

Status *take_scratch(const Api *api, const KernelContext *context, size_t bytes, Scratch *scratch);
void return_scratch(const Api *api, Scratch *scratch);

/* Keep the first failure of tasks that run at the same time. */
void keep_first(const Api *api, Status **kept, Status *status);

/* What all operators answer alike, and those of one output. */
const char *on_the_cpu(const CustomOp *op);
size_t one_output(const CustomOp *op);
Characteristic required(const CustomOp *op, size_t index);
int default_memory(const CustomOp *op, size_t index);
int no_variadic(const CustomOp *op);
int first_version(const CustomOp *op);
int last_version(const CustomOp *op);

#define OPERATOR_ON_THE_CPU                                                                        \
    .version = VERSION_WITH_PARALLEL_FOR, .get_provider = on_the_cpu,                              \
    .get_output_characteristic = required, .get_input_memory_type = default_memory,                \
    .get_variadic_input_arity = no_variadic, .get_variadic_input_homogeneity = no_variadic,        \
    .get_variadic_output_arity = no_variadic, .get_variadic_output_homogeneity = no_variadic,      \
    .get_start_version = first_version, .get_end_version = last_version
