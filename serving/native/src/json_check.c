/* Checking a JSON document. */
#include <string.h>

#include "json.h"
#include "json_text.h"
#include "utf8.h"

typedef struct {
    const char *at, *limit;
    const char *reason; /* NULL as long as nothing is wrong */
} Checker;

static bool fail(Checker *checker, const char *reason) {
    checker->reason = reason;
    return false;
}

/* Step over a character, after spaces, if it is what comes. */
static bool takes(Checker *checker, char c) {
    checker->at = json_skip_space(checker->at, checker->limit);
    if (checker->at == checker->limit || *checker->at != c)
        return false;
    checker->at++;
    return true;
}

static bool check_word(Checker *checker, const char *word) {
    const size_t size = strlen(word);
    if ((size_t)(checker->limit - checker->at) < size || memcmp(checker->at, word, size) != 0)
        return fail(checker, "expected a value");
    checker->at += size;
    return true;
}

static bool check_digits(Checker *checker) {
    if (checker->at == checker->limit || !json_is_digit(*checker->at))
        return fail(checker, "expected a digit");
    while (checker->at < checker->limit && json_is_digit(*checker->at))
        checker->at++;
    return true;
}

static bool is_next(const Checker *checker, char c) {
    return checker->at < checker->limit && *checker->at == c;
}

static bool check_number(Checker *checker) {
    checker->at += is_next(checker, '-');
    if (is_next(checker, '0'))
        checker->at++;
    else if (!check_digits(checker))
        return false;
    if (is_next(checker, '.')) {
        checker->at++;
        if (!check_digits(checker))
            return false;
    }
    if (is_next(checker, 'e') || is_next(checker, 'E')) {
        checker->at++;
        checker->at += is_next(checker, '-') || is_next(checker, '+');
        return check_digits(checker);
    }
    return true;
}

/* Check from behind the opening quote. */
static bool check_string(Checker *checker) {
    while (checker->at < checker->limit) {
        const char c = *checker->at;
        uint32_t code_point;
        if (c == '"') {
            checker->at++;
            return true;
        }
        if ((unsigned char)c < 0x20)
            return fail(checker, "control characters must be escaped in a string");
        if (c == '\\') {
            const char *end = json_read_escape(checker->at, checker->limit, &code_point);
            if (!end)
                return fail(checker, "a wrong escape in a string");
            checker->at = end;
        } else {
            const size_t left = (size_t)(checker->limit - checker->at);
            const size_t taken = utf8_read(checker->at, left, &code_point);
            if (code_point == UTF8_INVALID)
                return fail(checker, "a string that isn't UTF-8");
            checker->at += taken;
        }
    }
    return fail(checker, "a string without end");
}

static bool check_value(Checker *checker, int depth);

static bool check_member(Checker *checker, int depth) {
    if (!takes(checker, '"'))
        return fail(checker, "expected a member's name");
    if (!check_string(checker))
        return false;
    if (!takes(checker, ':'))
        return fail(checker, "expected a colon");
    return check_value(checker, depth);
}

/* Check from behind the opening bracket. */
static bool check_items(Checker *checker, char closing, int depth) {
    if (depth > JSON_DEEPEST)
        return fail(checker, "nested too deep");
    if (takes(checker, closing))
        return true;
    do {
        if (!(closing == '}' ? check_member : check_value)(checker, depth))
            return false;
    } while (takes(checker, ','));
    return takes(checker, closing) || fail(checker, "expected a comma or the end");
}

static bool check_value(Checker *checker, int depth) {
    checker->at = json_skip_space(checker->at, checker->limit);
    if (checker->at == checker->limit)
        return fail(checker, "expected a value");
    switch (*checker->at) {
    case '{':
        checker->at++;
        return check_items(checker, '}', depth + 1);
    case '[':
        checker->at++;
        return check_items(checker, ']', depth + 1);
    case '"':
        checker->at++;
        return check_string(checker);
    case 'n':
        return check_word(checker, "null");
    case 't':
        return check_word(checker, "true");
    case 'f':
        return check_word(checker, "false");
    default:
        return check_number(checker);
    }
}

bool json_read(const char *text, size_t size, JsonValue *root, JsonError *error) {
    Checker checker = {.at = text, .limit = text + size};
    *root = (JsonValue){0};
    if (check_value(&checker, 0)) {
        checker.at = json_skip_space(checker.at, checker.limit);
        if (checker.at == checker.limit) {
            *root = (JsonValue){json_skip_space(text, checker.limit), checker.limit};
            return true;
        }
        fail(&checker, "something follows the value");
    }
    *error = (JsonError){checker.reason, (size_t)(checker.at - text)};
    return false;
}
