/* The files of a bundle, read and checked before any engine is opened. */
#pragma once

#include "manifest.h"

/* The path of a file in a directory, taken from `memory`. */
llm_status path_join(const char *directory, const char *name, Memory *memory, const char **path,
                     llm_error *error);

/* Read all of a file, with a 0 behind it that `size` doesn't count. */
llm_status file_read(const char *path, Memory *memory, const char **text, size_t *size,
                     llm_error *error);

/* Read the manifest of the bundle in `directory` and check its files: their sizes, and with
 * `checksums` what is in them. */
llm_status bundle_open(const char *directory, bool checksums, Memory *memory, Manifest *manifest,
                       llm_error *error);
