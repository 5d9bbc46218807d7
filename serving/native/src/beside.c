#define _GNU_SOURCE /* dladdr */
#include "beside.h"

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

bool path_beside_library(const char *name, char path[BESIDE_LONGEST]) {
    static const char here;
    Dl_info info;
    if (!dladdr(&here, &info) || !info.dli_fname)
        return false;
    const char *const slash = strrchr(info.dli_fname, '/');
    const int length = slash ? (int)(slash - info.dli_fname) : 1;
    const int written =
        snprintf(path, BESIDE_LONGEST, "%.*s/%s", length, slash ? info.dli_fname : ".", name);
    return written < BESIDE_LONGEST && access(path, R_OK) == 0;
}
