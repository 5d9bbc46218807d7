/* Files in the directory that this library was loaded from. */
#pragma once

#include <stdbool.h>

enum { BESIDE_LONGEST = 4096 };

/* Write the path of a file beside the library; false if it isn't there. */
bool path_beside_library(const char *name, char path[BESIDE_LONGEST]);
