/* The pages of memory that a library's code and constants take. */
#pragma once

/* Let go of the pages of the library that `address` is in. Those that run again come back from the
 * system's cache of the file. */
void code_pages_release(const void *address);
