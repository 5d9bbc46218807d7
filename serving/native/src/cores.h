/* The processor's cores and the machine's memory. */
#pragma once

#include <stdint.h>

/* The physical cores that this process may run on; at least 1. */
int physical_cores(void);

/* Bytes that can be had without swapping; UINT64_MAX where Linux doesn't tell. */
uint64_t free_memory(void);
