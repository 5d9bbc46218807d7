/* What the library uses of ONNX Runtime's C interface, for builds without its headers.
 *
 * ONNX Runtime's own onnxruntime_c_api.h takes the place of this file where CMake is told of it
 * (ONNXRUNTIME_ROOT), and must compile to the same. Wheels of ONNX Runtime come without it. The
 * interface is a table of functions to which entries are only ever added, so each is known for good
 * by its place; these are the places of version 1.21.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

/* The first version that can run a loop on the session's own threads, as our kernels do: 1.17. */
#define ORT_API_VERSION 17

typedef struct OrtStatus OrtStatus;
typedef struct OrtEnv OrtEnv;
typedef struct OrtSession OrtSession;
typedef struct OrtSessionOptions OrtSessionOptions;
typedef struct OrtRunOptions OrtRunOptions;
typedef struct OrtMemoryInfo OrtMemoryInfo;
typedef struct OrtAllocator OrtAllocator;
typedef struct OrtValue OrtValue;
typedef struct OrtIoBinding OrtIoBinding;

typedef enum { ORT_LOGGING_LEVEL_ERROR = 3 } OrtLoggingLevel;
typedef enum OrtAllocatorType { OrtDeviceAllocator = 0, OrtArenaAllocator = 1 } OrtAllocatorType;
typedef enum OrtMemType { OrtMemTypeDefault = 0 } OrtMemType;
typedef enum {
    ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED = 0,
    ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT = 1,
    ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8 = 3,
    ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64 = 7,
    ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16 = 10,
    ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16 = 16,
} ONNXTensorElementDataType;

/* SKIP(m, n): the places from m to n are of functions that aren't used here. */
#define SKIP(first, last) void *skipped_##first[(last) - (first) + 1];
#define CALL(name, ...) OrtStatus *(*name)(__VA_ARGS__);
#define RELEASE(type) void (*Release##type)(Ort##type *);

typedef struct OrtApi {
    SKIP(0, 1)
    const char *(*GetErrorMessage)(const OrtStatus *status);
    CALL(CreateEnv, OrtLoggingLevel level, const char *log_id, OrtEnv **env)
    SKIP(4, 6)
    CALL(CreateSession, const OrtEnv *env, const char *path, const OrtSessionOptions *options,
         OrtSession **session)
    SKIP(8, 9)
    CALL(CreateSessionOptions, OrtSessionOptions **options)
    SKIP(11, 16)
    CALL(DisableMemPattern, OrtSessionOptions *options)
    SKIP(18, 21)
    CALL(SetSessionLogSeverityLevel, OrtSessionOptions *options, int level)
    SKIP(23, 23)
    CALL(SetIntraOpNumThreads, OrtSessionOptions *options, int threads)
    CALL(SetInterOpNumThreads, OrtSessionOptions *options, int threads)
    SKIP(26, 38)
    CALL(CreateRunOptions, OrtRunOptions **options)
    SKIP(40, 48)
    CALL(CreateTensorWithDataAsOrtValue, const OrtMemoryInfo *info, void *data, size_t bytes,
         const int64_t *shape, size_t dimensions, ONNXTensorElementDataType type, OrtValue **value)
    SKIP(50, 67)
    CALL(CreateMemoryInfo, const char *name, OrtAllocatorType allocator, int id, OrtMemType type,
         OrtMemoryInfo **info)
    CALL(CreateCpuMemoryInfo, OrtAllocatorType allocator, OrtMemType type, OrtMemoryInfo **info)
    SKIP(70, 74)
    CALL(AllocatorAlloc, OrtAllocator *allocator, size_t bytes, void **memory)
    CALL(AllocatorFree, OrtAllocator *allocator, void *memory)
    SKIP(77, 91)
    RELEASE(Env)
    RELEASE(Status)
    RELEASE(MemoryInfo)
    RELEASE(Session)
    RELEASE(Value)
    RELEASE(RunOptions)
    SKIP(98, 99)
    RELEASE(SessionOptions)
    SKIP(101, 129)
    CALL(AddSessionConfigEntry, OrtSessionOptions *options, const char *key, const char *value)
    CALL(CreateAllocator, const OrtSession *session, const OrtMemoryInfo *info,
         OrtAllocator **allocator)
    RELEASE(Allocator)
    CALL(RunWithBinding, OrtSession *session, const OrtRunOptions *options,
         const OrtIoBinding *binding)
    CALL(CreateIoBinding, OrtSession *session, OrtIoBinding **binding)
    RELEASE(IoBinding)
    CALL(BindInput, OrtIoBinding *binding, const char *name, const OrtValue *value)
    CALL(BindOutput, OrtIoBinding *binding, const char *name, const OrtValue *value)
    SKIP(138, 164)
    CALL(AddRunConfigEntry, OrtRunOptions *options, const char *key, const char *value)
    SKIP(166, 215)
    CALL(SessionOptionsAppendExecutionProvider, OrtSessionOptions *options, const char *name,
         const char *const *keys, const char *const *values, size_t count)
    SKIP(217, 227)
    CALL(RegisterCustomOpsLibrary_V2, OrtSessionOptions *options, const char *library)
} OrtApi;

#undef SKIP
#undef CALL
#undef RELEASE

typedef struct OrtApiBase {
    const OrtApi *(*GetApi)(uint32_t version);
    const char *(*GetVersionString)(void);
} OrtApiBase;
