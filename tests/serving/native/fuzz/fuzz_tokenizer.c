/* libFuzzer: any bytes as a tokenizer.json; where it opens, it is used. */
#include <stdlib.h>
#include <string.h>

#include "use_tokenizer.h"

int LLVMFuzzerTestOneInput(const unsigned char *data, size_t size) {
    static const char text[] =
        " The cafe\xcc\x81's 1234567 <s> tokens</s>: \xe4\xb8\xad\xe6\x96\x87\r\n"
        "\t\xf0\x9f\x98\x80 \xff\xe2\x96\x81IT'LL  end\xed\xa0\x80  ";
    Memory memory = memory_from(&(llm_allocator){0});
    const Tokenizer *tokenizer;
    llm_error error;
    char *json = malloc(size);
    if (size)
        memcpy(json, data, size);
    const llm_status status = tokenizer_open(json, size, &memory, &tokenizer, &error);
    free(json);
    if (status == LLM_OK)
        use_tokenizer(tokenizer, text, sizeof text - 1);
    memory_free(&memory);
    return 0;
}
