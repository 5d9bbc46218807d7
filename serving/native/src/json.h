/* A strict reader of JSON (RFC 8259, in UTF-8).
 *
 * A document is checked once, as a whole. After that a value is a place in the text: members are
 * found by walking over it, and nothing is allocated. A tokenizer of 33 MB takes no memory beyond
 * its text, and every walk goes over text that is known to be well-formed.
 *
 * Functions take a value of any type, also one that is absent, and say whether it was what they
 * want: a chain of look-ups needs one check, at its end.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Objects and arrays inside each other. */
#define JSON_DEEPEST 64

typedef enum {
    JSON_ABSENT, /* a member that isn't there */
    JSON_NULL,
    JSON_FALSE,
    JSON_TRUE,
    JSON_NUMBER,
    JSON_STRING,
    JSON_ARRAY,
    JSON_OBJECT,
} JsonType;

/* Valid as long as the text is. */
typedef struct {
    const char *start; /* NULL if absent */
    const char *limit; /* where the document ends */
} JsonValue;

typedef struct {
    const char *reason; /* a constant: what was expected */
    size_t offset;      /* in bytes */
} JsonError;

/* Check a whole document. False, with the error, if it isn't one or is too deep. */
bool json_read(const char *text, size_t size, JsonValue *root, JsonError *error);

JsonType json_type(JsonValue value);

/* The member of this name (zero-terminated, ASCII without escapes); the last, if there are several,
 * which is what Python takes. Absent if there is none, or if the value is no object. */
JsonValue json_member(JsonValue object, const char *name);

/* Several members of an object at once, in one walk over it; those of no such name are absent. */
void json_members(JsonValue object, const char *const *names, JsonValue *values, size_t count);

/* The members of an object, or the items of an array; none of anything else.
 *
 *     for (JsonItems items = json_items(value); json_next(&items);)
 *         use(items.name, items.value);
 */
typedef struct {
    JsonValue name;  /* a string; absent in an array */
    JsonValue value; /* of the item that json_next went to */
    const char *next;
    bool is_object;
} JsonItems;

JsonItems json_items(JsonValue value);
bool json_next(JsonItems *items);
/* Walks over them: linear in the size of their text. */
size_t json_count(JsonValue value);

/* Size in bytes of a string's text; 0 if it isn't a string. There is no terminating zero, and there
 * may be zeros in it. */
size_t json_string_size(JsonValue string);
/* Write as many bytes as json_string_size says. */
void json_string_copy(JsonValue string, char *text);
/* Whether it is a string that equals this zero-terminated one. */
bool json_string_is(JsonValue string, const char *text);

/* Whether it is a number without fraction or exponent that fits; then it is stored. */
bool json_integer(JsonValue number, int64_t *integer);
/* Whether it is a number; then the nearest double is stored (infinity if it is too large). It
 * doesn't depend on the locale. */
bool json_double(JsonValue number, double *result);
