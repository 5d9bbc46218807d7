/* libFuzzer: any bytes as the files of a bundle, which is opened with and without its checksums.
 *
 * The first 2 bytes are the size of bundle.json, which comes next; the rest is model.onnx.
 */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "bundle.h"

static char directory[] = "/dev/shm/fuzz_bundle.XXXXXX";

static void write_file(const char *name, const unsigned char *data, size_t size) {
    char path[128];
    strcat(strcat(strcpy(path, directory), "/"), name);
    const int file = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    if (file < 0 || write(file, data, size) != (ssize_t)size)
        abort();
    close(file);
}

static void remove_directory(void) {
    char path[128];
    unlink(strcat(strcpy(path, directory), "/bundle.json"));
    unlink(strcat(strcpy(path, directory), "/model.onnx"));
    rmdir(directory);
}

int LLVMFuzzerInitialize(int *count, char ***arguments) {
    (void)count, (void)arguments;
    return !mkdtemp(directory) || atexit(remove_directory);
}

int LLVMFuzzerTestOneInput(const unsigned char *data, size_t size) {
    if (size < 2)
        return -1;
    const size_t wanted = (size_t)(data[0] | data[1] << 8);
    const size_t manifest = wanted < size - 2 ? wanted : size - 2;
    write_file("bundle.json", data + 2, manifest);
    write_file("model.onnx", data + 2 + manifest, size - 2 - manifest);
    for (int checksums = 0; checksums < 2; checksums++) {
        Memory memory = memory_from(&(llm_allocator){0});
        Manifest opened;
        llm_error error;
        bundle_open(directory, checksums, &memory, &opened, &error);
        memory_free(&memory);
    }
    return 0;
}
