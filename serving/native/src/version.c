/* The library's version. */
#include "llm_runtime.h"

#define TEXT_OF(number) #number
#define JOINED(major, minor) TEXT_OF(major) "." TEXT_OF(minor)

const char *llm_version(void) { return JOINED(LLM_VERSION_MAJOR, LLM_VERSION_MINOR); }
