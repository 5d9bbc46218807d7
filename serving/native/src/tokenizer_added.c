#include "tokenizer_added.h"

#include <stdlib.h>
#include <string.h>

#include "failure.h"
#include "unicode.h"
#include "utf8.h"

/* ---- The tree ---- */

static llm_status add_node(Trie *trie, unsigned char byte, Memory *memory, llm_error *error) {
    TRY(buffer_reserve(&trie->nodes, 1, sizeof(TrieNode), memory, error));
    ((TrieNode *)trie->nodes.items)[trie->nodes.count++] = (TrieNode){.byte = byte};
    return LLM_OK;
}

static uint32_t child_of(const Trie *trie, uint32_t node, unsigned char byte) {
    const TrieNode *nodes = trie->nodes.items;
    uint32_t child = nodes[node].child;
    while (child && nodes[child].byte != byte)
        child = nodes[child].sibling;
    return child;
}

static llm_status trie_add(Trie *trie, const char *text, size_t size, uint32_t token,
                           Memory *memory, llm_error *error) {
    uint32_t node = 0;
    if (size == 0)
        return LLM_OK;
    if (trie->nodes.count == 0)
        TRY(add_node(trie, 0, memory, error));
    trie->can_begin[(unsigned char)text[0]] = true;
    for (size_t i = 0; i < size; i++) {
        uint32_t child = child_of(trie, node, (unsigned char)text[i]);
        if (!child) {
            child = (uint32_t)trie->nodes.count;
            TRY(add_node(trie, (unsigned char)text[i], memory, error));
            TrieNode *nodes = trie->nodes.items;
            nodes[child].sibling = nodes[node].child;
            nodes[node].child = child;
        }
        node = child;
    }
    TrieNode *last = (TrieNode *)trie->nodes.items + node;
    if (!last->token)
        last->token = token + 1;
    return LLM_OK;
}

/* The longest token that begins at `at`, as its place + 1. */
static uint32_t longest_at(const Trie *trie, const char *text, size_t size, size_t at,
                           size_t *end) {
    const TrieNode *nodes = trie->nodes.items;
    uint32_t node = 0, token = 0;
    while (at < size && (node = child_of(trie, node, (unsigned char)text[at]))) {
        at++;
        if (nodes[node].token) {
            token = nodes[node].token;
            *end = at;
        }
    }
    return token;
}

/* ---- Searching ---- */

static size_t before(const char *text, size_t at) {
    do
        at--;
    while (at > 0 && ((unsigned char)text[at] & 0xc0) == 0x80);
    return at;
}

/* Read the character that begins at `at` and say where the next one does. */
static size_t read_at(const char *text, size_t size, size_t at, uint32_t *code_point) {
    return at + utf8_read(text + at, size - at, code_point);
}

/* A word character of the regular expressions of Rust, which has the joiners too. */
static bool is_word_at(const char *text, size_t size, size_t at) {
    uint32_t code_point;
    read_at(text, size, at, &code_point);
    return unicode_is_word(code_point) || code_point == 0x200c || code_point == 0x200d;
}

static bool is_whole_word(const char *text, size_t size, Span span) {
    return (span.start == 0 || !is_word_at(text, size, before(text, span.start))) &&
           (span.end == size || !is_word_at(text, size, span.end));
}

static size_t start_of_spaces(const char *text, size_t size, size_t at) {
    uint32_t code_point;
    while (at > 0) {
        const size_t previous = before(text, at);
        read_at(text, size, previous, &code_point);
        if (!unicode_is_space(code_point))
            break;
        at = previous;
    }
    return at;
}

static size_t end_of_spaces(const char *text, size_t size, size_t at) {
    uint32_t code_point;
    while (at < size) {
        const size_t next = read_at(text, size, at, &code_point);
        if (!unicode_is_space(code_point))
            break;
        at = next;
    }
    return at;
}

const AddedToken *added_tokens_next(const AddedTokens *added, const Trie *trie, const char *text,
                                    size_t size, AddedCursor *cursor, Span *found) {
    while (cursor->next < size) {
        const size_t start = cursor->next;
        uint32_t place = 0;
        size_t end = start + 1;
        if (trie->can_begin[(unsigned char)text[start]])
            place = longest_at(trie, text, size, start, &end);
        cursor->next = end;
        if (!place)
            continue;
        const AddedToken *token = &added->tokens[place - 1];
        *found = (Span){start, end};
        if (token->is_single_word && !is_whole_word(text, size, *found))
            continue;
        if (token->strips_left) {
            const size_t spaces = start_of_spaces(text, size, start);
            found->start = spaces > cursor->given ? spaces : cursor->given;
        }
        if (token->strips_right)
            found->end = end_of_spaces(text, size, end);
        cursor->given = found->end;
        return token;
    }
    return NULL;
}

const AddedToken *added_token_of(const AddedTokens *added, uint64_t id) {
    size_t first = 0, count = added->count;
    while (count > 0) {
        const size_t half = count / 2;
        const AddedToken *token = added->by_id[first + half];
        if (token->id == id)
            return token;
        if (token->id < id) {
            first += half + 1;
            count -= half + 1;
        } else {
            count = half;
        }
    }
    return NULL;
}

/* ---- Reading ---- */

static bool is_true(JsonValue json, const char *name) {
    return json_type(json_member(json, name)) == JSON_TRUE;
}

static llm_status read_token(JsonValue json, const Vocabulary *vocabulary, Memory *memory,
                             AddedToken *token, llm_error *error) {
    int64_t id;
    if (!json_integer(json_member(json, "id"), &id) || id < 0 || id >= NO_TOKEN)
        return fail(error, LLM_DAMAGED, "An added token of tokenizer.json has no id.");
    TRY(read_text(json_member(json, "content"), memory, &token->text, &token->size, error));
    const uint32_t in_vocabulary = vocabulary_find(vocabulary, token->text, token->size);
    const bool is_taken = (size_t)id < vocabulary->id_count && vocabulary->tokens[id].text;
    if (in_vocabulary == NO_TOKEN ? is_taken : in_vocabulary != id)
        return fail(error, LLM_DAMAGED,
                    "The added token of id %lld in tokenizer.json contradicts the vocabulary.",
                    (long long)id);
    token->id = (uint32_t)id;
    token->is_special = is_true(json, "special");
    token->is_single_word = is_true(json, "single_word");
    token->strips_left = is_true(json, "lstrip");
    token->strips_right = is_true(json, "rstrip");
    token->is_normalized = is_true(json, "normalized");
    return LLM_OK;
}

static int compare_ids(const void *left, const void *right) {
    const AddedToken *const *a = left, *const *b = right;
    return ((*a)->id > (*b)->id) - ((*a)->id < (*b)->id);
}

static llm_status order_by_id(AddedTokens *added, llm_error *error) {
    for (size_t i = 0; i < added->count; i++)
        added->by_id[i] = &added->tokens[i];
    qsort(added->by_id, added->count, sizeof *added->by_id, compare_ids);
    for (size_t i = 1; i < added->count; i++)
        if (added->by_id[i]->id == added->by_id[i - 1]->id)
            return fail(error, LLM_DAMAGED, "Two added tokens of tokenizer.json have one id.");
    return LLM_OK;
}

/* Let a token that is found in normalized text be what normalization makes of it. */
static llm_status normalize_token(AddedToken *token, const Normalizer *normalizer,
                                  NormalizerScratch *scratch, RegexScratch *regex_scratch,
                                  Memory *memory, llm_error *error) {
    const char *text = token->text;
    size_t size = token->size;
    char *copy;
    TRY(normalizer_run(normalizer, &text, &size, scratch, regex_scratch, error));
    token->is_changed = size != token->size || memcmp(text, token->text, size) != 0;
    if (!token->is_changed)
        return LLM_OK;
    TRY(memory_take(memory, size + 1, 1, &copy, error));
    memcpy(copy, text, size);
    token->text = copy;
    token->size = size;
    return LLM_OK;
}

/* Special tokens come first: of two that are equal when normalized, the first is found. (With the
 * tokenizers library it is either, from run to run.) */
static llm_status build_tries(AddedTokens *added, Memory *memory, llm_error *error) {
    for (int is_special = 1; is_special >= 0; is_special--)
        for (size_t i = 0; i < added->count; i++) {
            const AddedToken *token = &added->tokens[i];
            Trie *trie = token->is_normalized ? &added->normalized : &added->raw;
            if (token->is_special == is_special)
                TRY(trie_add(trie, token->text, token->size, (uint32_t)i, memory, error));
        }
    return LLM_OK;
}

llm_status added_tokens_read(JsonValue json, const Vocabulary *vocabulary,
                             const Normalizer *normalizer, NormalizerScratch *scratch,
                             RegexScratch *regex_scratch, Memory *memory, AddedTokens *added,
                             llm_error *error) {
    const size_t count = json_count(json);
    TRY(memory_take(memory, count, sizeof *added->tokens, &added->tokens, error));
    TRY(memory_take(memory, count, sizeof *added->by_id, &added->by_id, error));
    for (JsonItems items = json_items(json); json_next(&items); added->count++) {
        AddedToken *token = &added->tokens[added->count];
        TRY(read_token(items.value, vocabulary, memory, token, error));
        if (token->is_normalized)
            TRY(normalize_token(token, normalizer, scratch, regex_scratch, memory, error));
    }
    TRY(order_by_id(added, error));
    return build_tries(added, memory, error);
}
