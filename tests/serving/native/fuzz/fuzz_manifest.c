/* libFuzzer: any bytes as a bundle.json; where it is read, everything in it is used. */
#include <stdlib.h>
#include <string.h>

#include "manifest.h"

static volatile size_t used;

static void use(const Manifest *manifest) {
    used += strlen(manifest->name) + strlen(manifest->architecture) + manifest_kv_bytes(manifest);
    for (size_t i = 0; i < manifest->layer_count; i++)
        used += manifest->layers[i].kv_heads + manifest->layers[i].dims[1];
    for (size_t i = 0; i < manifest->eos_count; i++)
        if (manifest->eos[i] < 0 || (uint64_t)manifest->eos[i] >= manifest->vocab_size)
            abort();
    for (size_t i = 0; i < manifest->file_count; i++) {
        const char *const name = manifest->files[i].name;
        if (*name == '/' || strcmp(name, "..") == 0 || strncmp(name, "../", 3) == 0 ||
            strstr(name, "/../") || !manifest_file(manifest, name))
            abort();
    }
    if (!manifest_file(manifest, manifest->engine_file))
        abort();
}

int LLVMFuzzerTestOneInput(const unsigned char *data, size_t size) {
    Memory memory = memory_from(&(llm_allocator){0});
    Manifest manifest;
    llm_error error;
    char *const text = malloc(size);
    if (size)
        memcpy(text, data, size);
    if (manifest_read(text, size, &memory, &manifest, &error) == LLM_OK) {
        free(text);
        use(&manifest);
    } else {
        free(text);
    }
    memory_free(&memory);
    return 0;
}
