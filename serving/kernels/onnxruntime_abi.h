/* The part of ONNX Runtime's C interface that custom operators need.
 *
 * The interface is a table of functions to which entries are only ever added, so each is known for
 * good by its place. Places are those of onnxruntime_c_api.h (OrtApi, OrtCustomOp) of version 1.21;
 * wheels of ONNX Runtime come without that header.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

/* The first version that can run a loop on the session's own threads: 1.17. */
#define VERSION_WITH_PARALLEL_FOR 17

typedef struct Status Status;
typedef struct KernelInfo KernelInfo;
typedef struct KernelContext KernelContext;
typedef struct Value Value;
typedef struct TensorInfo TensorInfo;
typedef struct OpDomain OpDomain;
typedef struct SessionOptions SessionOptions;
typedef struct MemoryInfo MemoryInfo;
typedef struct Allocator Allocator;
typedef struct CustomOp CustomOp;

typedef struct {
    void *entry[275];
} Api;

typedef struct {
    const Api *(*get_api)(uint32_t version);
    const char *(*get_version)(void);
} ApiBase;

typedef enum { FLOAT = 1, UINT8 = 2, INT32 = 6, BOOL = 9, FLOAT16 = 10 } ElementType;
typedef enum { DEVICE_ALLOCATOR = 0, ARENA = 1 } AllocatorType;
typedef enum { REQUIRED = 0, OPTIONAL = 1 } Characteristic;
typedef enum { FAIL = 1, NOT_IMPLEMENTED = 9 } ErrorCode;

struct CustomOp {
    uint32_t version;
    void *(*create_kernel_without_status)(const CustomOp *, const Api *, const KernelInfo *);
    const char *(*get_name)(const CustomOp *);
    const char *(*get_provider)(const CustomOp *);
    ElementType (*get_input_type)(const CustomOp *, size_t);
    size_t (*get_input_count)(const CustomOp *);
    ElementType (*get_output_type)(const CustomOp *, size_t);
    size_t (*get_output_count)(const CustomOp *);
    void (*compute_without_status)(void *, KernelContext *);
    void (*destroy_kernel)(void *);
    Characteristic (*get_input_characteristic)(const CustomOp *, size_t);
    Characteristic (*get_output_characteristic)(const CustomOp *, size_t);
    int (*get_input_memory_type)(const CustomOp *, size_t);
    int (*get_variadic_input_arity)(const CustomOp *);
    int (*get_variadic_input_homogeneity)(const CustomOp *);
    int (*get_variadic_output_arity)(const CustomOp *);
    int (*get_variadic_output_homogeneity)(const CustomOp *);
    Status *(*create_kernel)(const CustomOp *, const Api *, const KernelInfo *, void **);
    Status *(*compute)(void *, KernelContext *);
    Status *(*infer_shapes)(const CustomOp *, void *);
    int (*get_start_version)(const CustomOp *);
    int (*get_end_version)(const CustomOp *);
};

/* name(api)(...) calls the function at a place of the table. */
#define FUNCTION(place, result, name, ...)                                                         \
    static inline result (*name(const Api *api))(__VA_ARGS__) {                                    \
        return (result (*)(__VA_ARGS__))api->entry[place];                                         \
    }

FUNCTION(0, Status *, create_status, ErrorCode code, const char *message)
FUNCTION(26, Status *, create_domain, const char *name, OpDomain **domain)
FUNCTION(27, Status *, add_to_domain, OpDomain *domain, const CustomOp *op)
FUNCTION(28, Status *, add_domain, SessionOptions *options, OpDomain *domain)
FUNCTION(51, Status *, tensor_data, const Value *value, void **data)
FUNCTION(60, Status *, element_type, const TensorInfo *info, ElementType *type)
FUNCTION(61, Status *, dimension_count, const TensorInfo *info, size_t *count)
FUNCTION(62, Status *, dimensions, const TensorInfo *info, int64_t *sizes, size_t count)
FUNCTION(65, Status *, tensor_info, const Value *value, TensorInfo **info)
FUNCTION(69, Status *, cpu_memory_info, AllocatorType allocator, int memory, MemoryInfo **info)
FUNCTION(75, Status *, allocate, Allocator *allocator, size_t size, void **memory)
FUNCTION(76, Status *, deallocate, Allocator *allocator, void *memory)
FUNCTION(85, Status *, float_attribute, const KernelInfo *info, const char *name, float *value)
FUNCTION(86, Status *, int_attribute, const KernelInfo *info, const char *name, int64_t *value)
FUNCTION(88, Status *, kernel_input_count, const KernelContext *context, size_t *count)
FUNCTION(90, Status *, kernel_input, const KernelContext *context, size_t index,
         const Value **value)
FUNCTION(91, Status *, kernel_output, KernelContext *context, size_t index, const int64_t *sizes,
         size_t count, Value **value)
FUNCTION(93, void, release_status, Status *status)
FUNCTION(99, void, release_tensor_info, TensorInfo *info)
FUNCTION(101, void, release_domain, OpDomain *domain)
FUNCTION(132, void, release_allocator, Allocator *allocator)
FUNCTION(230, Status *, node_input_count, const KernelInfo *info, size_t *count)
FUNCTION(237, Status *, has_entry, const SessionOptions *options, const char *key, int *has)
FUNCTION(249, Status *, constant_input, const KernelInfo *info, size_t index, int *is_constant,
         const Value **value)
FUNCTION(253, Status *, kernel_allocator, const KernelContext *context, const MemoryInfo *info,
         Allocator **allocator)
FUNCTION(274, Status *, parallel_for, const KernelContext *context, void (*body)(void *, size_t),
         size_t total, size_t batches, void *data)
