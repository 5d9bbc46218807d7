#include "onnxruntime.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "beside.h"

#define VARIABLE "LLM_ONNXRUNTIME_LIBRARY"

static void *load_any(void) {
    static const char *const names[] = {"libonnxruntime.so", "libonnxruntime.so.1"};
    void *library = NULL;
    char path[BESIDE_LONGEST];
    for (size_t i = 0; i < 2 && !library; i++)
        if (path_beside_library(names[i], path))
            library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    for (size_t i = 0; i < 2 && !library; i++)
        library = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
    return library;
}

llm_status onnxruntime_load(const char *path, OnnxRuntime *runtime, llm_error *error) {
    if (!path)
        path = getenv(VARIABLE);
    void *const library = path && *path ? dlopen(path, RTLD_NOW | RTLD_LOCAL) : load_any();
    if (!library)
        return fail(error, LLM_NOT_FOUND,
                    "ONNX Runtime's library can't be loaded (%s): set " VARIABLE
                    " to libonnxruntime.so, which the wheel onnxruntime has in its folder capi.",
                    dlerror());
    const OrtApiBase *(*base)(void);
    void *const symbol = dlsym(library, "OrtGetApiBase");
    memcpy(&base, &symbol, sizeof base);
    runtime->api = symbol ? base()->GetApi(ORT_API_VERSION) : NULL;
    if (!runtime->api)
        return fail(error, LLM_NOT_FOUND,
                    "'%s' is not an ONNX Runtime with version %d of its C interface: install a "
                    "newer one.",
                    path ? path : "libonnxruntime.so", ORT_API_VERSION);
    runtime->version = base()->GetVersionString();
    return LLM_OK;
}

llm_status onnxruntime_check(const OrtApi *api, OrtStatus *status, const char *doing,
                             llm_error *error) {
    if (!status)
        return LLM_OK;
    const char *const message = api->GetErrorMessage(status);
    const llm_status failed = fail(error, LLM_ENGINE_FAILED, "ONNX Runtime failed at %s: %.*s",
                                   doing, (int)strcspn(message, "\n"), message);
    api->ReleaseStatus(status);
    return failed;
}
