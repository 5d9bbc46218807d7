/* libFuzzer: any bytes as a text, and as token ids, for the tokenizers of a folder.
 *
 * The folder is in TOKENIZERS, its files are named 0.json, 1.json ... The first byte of an input
 * chooses the tokenizer.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "use_tokenizer.h"

#define MOST_TOKENIZERS 32

static const Tokenizer *tokenizers[MOST_TOKENIZERS];
static unsigned tokenizer_count;
static Memory memory;

static bool open_file(unsigned number) {
    static char json[1 << 20];
    char path[4096];
    snprintf(path, sizeof path, "%s/%u.json", getenv("TOKENIZERS"), number);
    FILE *file = fopen(path, "rb");
    if (!file)
        return false;
    const size_t size = fread(json, 1, sizeof json, file);
    llm_error error;
    fclose(file);
    if (tokenizer_open(json, size, &memory, &tokenizers[number], &error) != LLM_OK) {
        fprintf(stderr, "%s: %s\n", path, error.message);
        abort();
    }
    return true;
}

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    (void)argc, (void)argv;
    memory = memory_from(&(llm_allocator){0});
    while (tokenizer_count < MOST_TOKENIZERS && open_file(tokenizer_count))
        tokenizer_count++;
    if (tokenizer_count == 0)
        abort();
    return 0;
}

int LLVMFuzzerTestOneInput(const unsigned char *data, size_t size) {
    if (size < 1)
        return 0;
    const Tokenizer *tokenizer = tokenizers[data[0] % tokenizer_count];
    char *text = malloc(size);
    memcpy(text, data + 1, size - 1);
    use_tokenizer(tokenizer, text, size - 1);
    use_ids(tokenizer, data + 1, size - 1);
    free(text);
    return 0;
}
