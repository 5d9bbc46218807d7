#include "bundle.h"

#include "failure.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

/* A manifest is some kilobytes, and the largest tokenizer some tens of megabytes. */
#define LARGEST_TEXT (INT64_C(1) << 30)

llm_status path_join(const char *directory, const char *name, Memory *memory, const char **path,
                     llm_error *error) {
    const size_t size = strlen(directory) + strlen(name) + 2;
    char *joined;
    TRY(memory_take(memory, size, 1, &joined, error));
    snprintf(joined, size, "%s/%s", directory, name);
    *path = joined;
    return LLM_OK;
}

static llm_status unreadable(const char *path, llm_error *error) {
    const llm_status status = errno == ENOENT || errno == ENOTDIR ? LLM_NOT_FOUND : LLM_DAMAGED;
    return fail(error, status, "'%s' can't be read (%s): check the path and its permissions.", path,
                strerror(errno));
}

llm_status file_read(const char *path, Memory *memory, const char **text, size_t *size,
                     llm_error *error) {
    struct stat state;
    if (stat(path, &state) != 0)
        return unreadable(path, error);
    if (!S_ISREG(state.st_mode) || state.st_size > LARGEST_TEXT)
        return fail(error, LLM_DAMAGED, "'%s' is not a file that could be read: copy it again.",
                    path);
    char *content;
    const size_t expected = (size_t)state.st_size;
    TRY(memory_take(memory, expected + 1, 1, &content, error));
    FILE *const file = fopen(path, "rb");
    if (!file)
        return unreadable(path, error);
    *size = fread(content, 1, expected, file);
    *text = content;
    fclose(file);
    return *size == expected ? LLM_OK
                             : fail(error, LLM_DAMAGED, "'%s' ends early: copy it again.", path);
}

static bool has_checksum(const char *path, const BundleFile *expected) {
    unsigned char buffer[1 << 16], digest[SHA256_BYTES];
    Sha256 hash;
    FILE *const file = fopen(path, "rb");
    if (!file)
        return false;
    setvbuf(file, NULL, _IONBF, 0);
    sha256_begin(&hash);
    for (size_t got; (got = fread(buffer, 1, sizeof buffer, file)) > 0;)
        sha256_add(&hash, buffer, got);
    fclose(file);
    sha256_end(&hash, digest);
    return memcmp(digest, expected->sha256, sizeof digest) == 0;
}

static llm_status check_file(const char *directory, const BundleFile *file, bool checksum,
                             Memory *memory, llm_error *error) {
    static const char *const remedy = "copy the bundle or export the model again";
    const char *path;
    struct stat state;
    TRY(path_join(directory, file->name, memory, &path, error));
    if (stat(path, &state) != 0 || !S_ISREG(state.st_mode))
        return fail(error, LLM_DAMAGED, "The bundle '%s' lacks its file '%s': %s.", directory,
                    file->name, remedy);
    if ((uint64_t)state.st_size != file->size)
        return fail(error, LLM_DAMAGED,
                    "'%s' in the bundle '%s' has %lld bytes instead of %llu: %s.", file->name,
                    directory, (long long)state.st_size, (unsigned long long)file->size, remedy);
    if (checksum && !has_checksum(path, file))
        return fail(error, LLM_DAMAGED,
                    "'%s' in the bundle '%s' has changed since it was made (its checksum differs): "
                    "%s.",
                    file->name, directory, remedy);
    return LLM_OK;
}

static bool exists(const char *path) {
    struct stat state;
    return stat(path, &state) == 0;
}

static llm_status refuse_what_is_no_bundle(const char *directory, const char *manifest,
                                           Memory *memory, llm_error *error) {
    const char *encryption;
    struct stat state;
    if (stat(directory, &state) != 0 || !S_ISDIR(state.st_mode))
        return fail(error, LLM_NOT_FOUND, "There is no bundle directory '%s': check the path.",
                    directory);
    TRY(path_join(directory, "encryption.json", memory, &encryption, error));
    if (exists(encryption))
        return fail(error, LLM_UNSUPPORTED,
                    "The bundle '%s' is encrypted, which the native runtime doesn't read: give the "
                    "bundle that it was made from.",
                    directory);
    if (!exists(manifest))
        return fail(error, LLM_NOT_A_BUNDLE,
                    "'%s' is not a bundle, it has no bundle.json: make a bundle from a checkpoint "
                    "with export-llm.",
                    directory);
    return LLM_OK;
}

llm_status bundle_open(const char *directory, bool checksums, Memory *memory, Manifest *manifest,
                       llm_error *error) {
    const char *path, *text;
    size_t size;
    TRY(path_join(directory, "bundle.json", memory, &path, error));
    TRY(refuse_what_is_no_bundle(directory, path, memory, error));
    TRY(file_read(path, memory, &text, &size, error));
    TRY(manifest_read(text, size, memory, manifest, error));
    for (size_t i = 0; i < manifest->file_count; i++)
        TRY(check_file(directory, &manifest->files[i], checksums, memory, error));
    return LLM_OK;
}
