/* libFuzzer: any bytes as a JSON document, of which everything is read. */
#include <stdlib.h>
#include <string.h>

#include "json.h"

static void read_string(JsonValue value) {
    const size_t size = json_string_size(value);
    char *text = malloc(size + 1);
    json_string_copy(value, text);
    text[size] = 0;
    if (json_string_is(value, text) != (strlen(text) == size && json_type(value) == JSON_STRING))
        abort();
    free(text);
}

static void read_value(JsonValue value) {
    int64_t integer;
    double number;
    size_t count = 0;
    if (json_integer(value, &integer) && !json_double(value, &number))
        abort();
    json_double(value, &number);
    read_string(value);
    for (JsonItems items = json_items(value); json_next(&items); count++) {
        read_string(items.name);
        read_value(items.value);
    }
    if (count != json_count(value))
        abort();
    read_string(json_member(value, "id"));
}

int LLVMFuzzerTestOneInput(const unsigned char *data, size_t size) {
    JsonValue root;
    JsonError error;
    /* A copy of its own, so that a byte too many is noticed. */
    char *text = malloc(size);
    if (size)
        memcpy(text, data, size);
    if (json_read(text, size, &root, &error))
        read_value(root);
    else if (error.offset > size || !error.reason)
        abort();
    free(text);
    return 0;
}
