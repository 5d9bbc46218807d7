#define _GNU_SOURCE /* sched_getaffinity */
#include "cores.h"

#include <inttypes.h>
#include <sched.h>
#include <stdio.h>

/* The first of the processors that share a core with this one, or itself where Linux doesn't tell.
 */
static int first_sibling(int processor) {
    char path[80];
    int first = processor;
    snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/topology/thread_siblings_list",
             processor);
    FILE *const file = fopen(path, "r");
    if (!file)
        return processor;
    if (fscanf(file, "%d", &first) != 1 || first < 0 || first >= CPU_SETSIZE)
        first = processor;
    fclose(file);
    return first;
}

int physical_cores(void) {
    cpu_set_t allowed, cores;
    CPU_ZERO(&cores);
    if (sched_getaffinity(0, sizeof allowed, &allowed) != 0)
        return 1;
    for (int processor = 0; processor < CPU_SETSIZE; processor++)
        if (CPU_ISSET(processor, &allowed))
            CPU_SET(first_sibling(processor), &cores);
    return CPU_COUNT(&cores);
}

uint64_t free_memory(void) {
    uint64_t kilobytes = 0;
    char line[128];
    FILE *const file = fopen("/proc/meminfo", "r");
    while (file && fgets(line, sizeof line, file))
        if (sscanf(line, "MemAvailable: %" SCNu64, &kilobytes) == 1)
            break;
    if (file)
        fclose(file);
    return kilobytes ? kilobytes * 1024 : UINT64_MAX;
}
