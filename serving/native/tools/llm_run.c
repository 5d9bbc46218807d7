/* llm-run: text from a bundle, at the command line. */
#include "llm_runtime.h"

#include <stdio.h>

int main(void) {
    printf("llm-run %s\n", llm_version());
    return 0;
}
