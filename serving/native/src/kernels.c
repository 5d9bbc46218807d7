#include "kernels.h"

#include "beside.h"

#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

/* Whether the kernels have an instruction set for this processor; they stay loaded. */
static bool run_here(void *library) {
    const char *(*instruction_set)(void);
    void *const symbol = dlsym(library, "instruction_set");
    memcpy(&instruction_set, &symbol, sizeof symbol);
    return symbol && instruction_set();
}

llm_status kernels_find(const char *wanted, Memory *memory, const char **path, llm_error *error) {
    char beside[BESIDE_LONGEST];
    const char *const choice = getenv("EXPORT_LLM_KERNELS");
    *path = NULL;
    if ((wanted && !*wanted) || (choice && strcmp(choice, "none") == 0))
        return LLM_OK;
    if (!wanted && !path_beside_library("libllm_kernels.so", beside))
        return LLM_OK;
    const char *const found = wanted ? wanted : beside;
    void *const library = dlopen(found, RTLD_NOW | RTLD_LOCAL);
    if (!library)
        return fail(error, LLM_NOT_FOUND, "The kernels can't be loaded (%s): give another path.",
                    dlerror());
    if (!run_here(library))
        return LLM_OK;
    char *copy;
    TRY(memory_take(memory, strlen(found) + 1, 1, &copy, error));
    strcpy(copy, found);
    *path = copy;
    return LLM_OK;
}
