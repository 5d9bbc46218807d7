#define _GNU_SOURCE
#include "code_pages.h"

#include <link.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>

typedef struct dl_phdr_info Library;

static bool is_in(const Library *library, uintptr_t address) {
    for (size_t i = 0; i < library->dlpi_phnum; i++) {
        const ElfW(Phdr) *const part = &library->dlpi_phdr[i];
        const uintptr_t begin = library->dlpi_addr + part->p_vaddr;
        if (part->p_type == PT_LOAD && address >= begin && address - begin < part->p_memsz)
            return true;
    }
    return false;
}

/* Whether the loader wrote addresses into the code: then the file hasn't what is in memory. */
static bool is_relocated(const Library *library) {
    for (size_t i = 0; i < library->dlpi_phnum; i++) {
        if (library->dlpi_phdr[i].p_type != PT_DYNAMIC)
            continue;
        const uintptr_t entries = library->dlpi_addr + library->dlpi_phdr[i].p_vaddr;
        for (const ElfW(Dyn) *entry = (const ElfW(Dyn) *)entries; entry->d_tag != DT_NULL; entry++)
            if (entry->d_tag == DT_TEXTREL ||
                (entry->d_tag == DT_FLAGS && entry->d_un.d_val & DF_TEXTREL))
                return true;
    }
    return false;
}

static int release(Library *library, size_t size, void *address) {
    const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    (void)size;
    if (!is_in(library, (uintptr_t)address))
        return 0;
    for (size_t i = 0; i < library->dlpi_phnum && !is_relocated(library); i++) {
        const ElfW(Phdr) *const part = &library->dlpi_phdr[i];
        const uintptr_t begin = (library->dlpi_addr + part->p_vaddr) / page * page;
        const uintptr_t end = library->dlpi_addr + part->p_vaddr + part->p_filesz;
        if (part->p_type == PT_LOAD && !(part->p_flags & PF_W))
            madvise((void *)begin, end - begin, MADV_DONTNEED);
    }
    return 1;
}

void code_pages_release(const void *address) { dl_iterate_phdr(release, (void *)address); }
