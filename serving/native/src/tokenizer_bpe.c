#include "tokenizer_bpe.h"

#include <string.h>

#include "failure.h"
#include "utf8.h"

#define NO_RANK UINT32_MAX
#define NO_SYMBOL UINT32_MAX

/* A token of the word as merged so far; `rank` and `merged` say what it becomes with the next one.
 */
typedef struct {
    uint32_t id, previous, next, rank, merged;
} Symbol;

/* ---- Merges ---- */

static size_t merge_slot(const Bpe *bpe, uint32_t left, uint32_t right) {
    const uint64_t pair = ((uint64_t)left << 32 | right) * 0x9e3779b97f4a7c15;
    const size_t mask = bpe->merge_slots - 1;
    for (size_t slot = (pair ^ pair >> 32) & mask;; slot = (slot + 1) & mask) {
        const Merge *merge = &bpe->merges[slot];
        if (merge->rank == NO_RANK || (merge->left == left && merge->right == right))
            return slot;
    }
}

/* ---- The first symbols of a word ---- */

/* What a byte at byte level is spelt with: itself where that can be printed, or one from U+0100 on.
 */
uint32_t byte_level_character(unsigned char byte) {
    if ((byte > ' ' && byte < 0x7f) || (byte > 0xa0 && byte != 0xad))
        return byte;
    if (byte <= ' ')
        return 0x100 + byte;
    return byte == 0xad ? 0x143u : 0x121u + (byte - 0x7fu);
}

static void add_symbol(Buffer *symbols, uint32_t id) {
    ((Symbol *)symbols->items)[symbols->count++].id = id;
}

/* Tokens of the bytes of a character that is no token; false if any of them has none. */
static bool add_bytes(const Bpe *bpe, Buffer *symbols, const char *character, size_t size) {
    for (size_t i = 0; i < size; i++)
        if (bpe->fallback[(unsigned char)character[i]] == NO_TOKEN)
            return false;
    for (size_t i = 0; i < size; i++)
        add_symbol(symbols, bpe->fallback[(unsigned char)character[i]]);
    return true;
}

/* There is room for a symbol for each byte, and one more. */
static void add_characters(const Bpe *bpe, Buffer *symbols, const char *word, size_t size) {
    bool has_unknown = false;
    for (size_t at = 0, taken; at < size; at += taken) {
        const unsigned char c = (unsigned char)word[at];
        uint32_t id, code_point;
        if (bpe->is_byte_level || c < 0x80) {
            taken = 1;
            id = bpe->initial[c];
        } else {
            taken = utf8_read(word + at, size - at, &code_point);
            id = vocabulary_find(&bpe->vocabulary, word + at, taken);
        }
        if (id == NO_TOKEN && bpe->has_byte_fallback && add_bytes(bpe, symbols, word + at, taken))
            continue;
        /* An unknown character waits for others to become one token with. */
        if (has_unknown && (id != NO_TOKEN || !bpe->fuses_unknown)) {
            add_symbol(symbols, bpe->unknown);
            has_unknown = false;
        }
        if (id != NO_TOKEN)
            add_symbol(symbols, id);
        else
            has_unknown = bpe->unknown != NO_TOKEN;
    }
    if (has_unknown)
        add_symbol(symbols, bpe->unknown);
}

/* ---- Merging ---- */

/* A queue of places where two symbols may be merged: a heap, the lowest rank first, then the
 * leftmost place. */
static uint64_t queue_entry(uint32_t rank, uint32_t place) { return (uint64_t)rank << 32 | place; }

static void push(uint64_t *queue, size_t *count, uint64_t entry) {
    size_t at = (*count)++;
    for (; at > 0 && queue[(at - 1) / 2] > entry; at = (at - 1) / 2)
        queue[at] = queue[(at - 1) / 2];
    queue[at] = entry;
}

static uint64_t pop(uint64_t *queue, size_t *count) {
    const uint64_t first = queue[0], entry = queue[--*count];
    size_t at = 0;
    for (size_t child; (child = 2 * at + 1) < *count; at = child) {
        child += child + 1 < *count && queue[child + 1] < queue[child];
        if (entry <= queue[child])
            break;
        queue[at] = queue[child];
    }
    queue[at] = entry;
    return first;
}

/* Look up what a symbol and its next one become, and queue it. */
static void consider(const Bpe *bpe, Symbol *symbols, uint32_t place, uint64_t *queue,
                     size_t *count) {
    Symbol *symbol = &symbols[place];
    symbol->rank = NO_RANK;
    if (symbol->next == NO_SYMBOL)
        return;
    const Merge *merge = &bpe->merges[merge_slot(bpe, symbol->id, symbols[symbol->next].id)];
    symbol->rank = merge->rank;
    symbol->merged = merge->merged;
    if (merge->rank != NO_RANK)
        push(queue, count, queue_entry(merge->rank, place));
}

static void merge_all(const Bpe *bpe, Symbol *symbols, uint32_t count, uint64_t *queue) {
    size_t queued = 0;
    for (uint32_t i = 0; i < count; i++) {
        symbols[i].previous = i - 1; /* of the first: NO_SYMBOL */
        symbols[i].next = i + 1 < count ? i + 1 : NO_SYMBOL;
    }
    for (uint32_t i = 0; i < count; i++)
        consider(bpe, symbols, i, queue, &queued);
    while (queued > 0) {
        const uint64_t entry = pop(queue, &queued);
        const uint32_t place = (uint32_t)entry;
        Symbol *symbol = &symbols[place];
        if (symbol->rank != entry >> 32)
            continue; /* one of the two has become something else */
        Symbol *right = &symbols[symbol->next];
        symbol->id = symbol->merged;
        symbol->next = right->next;
        right->rank = NO_RANK;
        if (symbol->next != NO_SYMBOL)
            symbols[symbol->next].previous = place;
        consider(bpe, symbols, place, queue, &queued);
        if (symbol->previous != NO_SYMBOL)
            consider(bpe, symbols, symbol->previous, queue, &queued);
    }
}

/* Whether the word is a token as it is; it may be spelt differently at byte level. */
static llm_status find_word(const Bpe *bpe, const char *word, size_t size, Buffer *spelling,
                            uint32_t *id, Memory *memory, llm_error *error) {
    if (bpe->is_byte_level) {
        spelling->count = 0;
        TRY(buffer_reserve(spelling, 2 * size, 1, memory, error));
        for (size_t i = 0; i < size; i++)
            spelling->count += utf8_write(byte_level_character((unsigned char)word[i]),
                                          (char *)spelling->items + spelling->count);
        word = spelling->items;
        size = spelling->count;
    }
    *id = vocabulary_find(&bpe->vocabulary, word, size);
    return LLM_OK;
}

llm_status bpe_encode(const Bpe *bpe, const char *word, size_t size, BpeScratch *scratch,
                      Buffer *ids, Memory *memory, llm_error *error) {
    Buffer *symbols = &scratch->symbols, *queue = &scratch->queue;
    TRY(buffer_reserve(ids, size + 1, sizeof(uint32_t), memory, error));
    uint32_t *out = ids->items;
    if (bpe->ignores_merges) {
        uint32_t id;
        TRY(find_word(bpe, word, size, &scratch->spelling, &id, memory, error));
        if (id != NO_TOKEN) {
            out[ids->count++] = id;
            return LLM_OK;
        }
    }
    symbols->count = queue->count = 0;
    TRY(buffer_reserve(symbols, size + 1, sizeof(Symbol), memory, error));
    add_characters(bpe, symbols, word, size);
    if (symbols->count == 0)
        return LLM_OK;
    /* Each merge takes one symbol and queues two. */
    TRY(buffer_reserve(queue, 3 * symbols->count, sizeof(uint64_t), memory, error));
    merge_all(bpe, symbols->items, (uint32_t)symbols->count, queue->items);
    const Symbol *items = symbols->items;
    for (uint32_t at = 0; at != NO_SYMBOL; at = items[at].next)
        out[ids->count++] = items[at].id;
    return LLM_OK;
}

/* ---- Reading ---- */

/* Append a JSON string's text. */
static llm_status append_string(JsonValue string, Buffer *text, Memory *memory, llm_error *error) {
    const size_t size = json_string_size(string);
    TRY(buffer_reserve(text, size, 1, memory, error));
    json_string_copy(string, (char *)text->items + text->count);
    text->count += size;
    return LLM_OK;
}

/* Write the tokens of a merge, ["a", "b"] or "a b" in older files, one behind the other. The second
 * begins at `*second`; that is SIZE_MAX if there aren't two. */
static llm_status join_pair(JsonValue merge, Buffer *joined, size_t *second, Memory *memory,
                            llm_error *error) {
    JsonItems items = json_items(merge);
    joined->count = 0;
    *second = SIZE_MAX;
    if (json_type(merge) == JSON_STRING) {
        TRY(append_string(merge, joined, memory, error));
        char *text = joined->items, *space = memchr(text, ' ', joined->count);
        if (!space)
            return LLM_OK;
        joined->count--;
        *second = (size_t)(space - text);
        memmove(space, space + 1, joined->count - *second);
        return LLM_OK;
    }
    if (!json_next(&items))
        return LLM_OK;
    TRY(append_string(items.value, joined, memory, error));
    const size_t first_size = joined->count;
    if (!json_next(&items))
        return LLM_OK;
    TRY(append_string(items.value, joined, memory, error));
    *second = json_next(&items) ? SIZE_MAX : first_size;
    return LLM_OK;
}

static llm_status read_merge(const Vocabulary *vocabulary, JsonValue json, Buffer *joined,
                             Merge *merge, Memory *memory, llm_error *error) {
    size_t second;
    TRY(join_pair(json, joined, &second, memory, error));
    if (second < joined->count) {
        const char *text = joined->items;
        merge->left = vocabulary_find(vocabulary, text, second);
        merge->right = vocabulary_find(vocabulary, text + second, joined->count - second);
        merge->merged = vocabulary_find(vocabulary, text, joined->count);
        if (merge->left != NO_TOKEN && merge->right != NO_TOKEN && merge->merged != NO_TOKEN)
            return LLM_OK;
    }
    return fail(error, LLM_DAMAGED,
                "A merge of tokenizer.json isn't of two tokens that make a third.");
}

static llm_status read_merges(JsonValue merges, Memory *memory, Bpe *bpe, llm_error *error) {
    const size_t count = json_count(merges);
    Buffer joined = {0};
    uint32_t rank = 0;
    if (json_type(merges) != JSON_ARRAY || count >= NO_RANK)
        return fail(error, LLM_DAMAGED, "tokenizer.json has no merges.");
    for (bpe->merge_slots = 4; bpe->merge_slots < count + count / 2;)
        bpe->merge_slots *= 2;
    TRY(memory_take(memory, bpe->merge_slots, sizeof(Merge), &bpe->merges, error));
    for (size_t i = 0; i < bpe->merge_slots; i++)
        bpe->merges[i].rank = NO_RANK;
    for (JsonItems items = json_items(merges); json_next(&items); rank++) {
        Merge merge = {.rank = rank};
        TRY(read_merge(&bpe->vocabulary, items.value, &joined, &merge, memory, error));
        bpe->merges[merge_slot(bpe, merge.left, merge.right)] = merge;
    }
    return LLM_OK;
}

static void find_initial_tokens(Bpe *bpe) {
    static const char digits[] = "0123456789ABCDEF";
    for (unsigned byte = 0; byte < 256; byte++) {
        char text[] = {'<', '0', 'x', digits[byte >> 4], digits[byte & 15], '>'};
        bpe->fallback[byte] = vocabulary_find(&bpe->vocabulary, text, sizeof text);
        const uint32_t character =
            bpe->is_byte_level ? byte_level_character((unsigned char)byte) : byte;
        const size_t size = utf8_write(character, text);
        bpe->initial[byte] = vocabulary_find(&bpe->vocabulary, text, size);
    }
}

/* The members of a model, which are read in one walk: it is nearly all of the file. */
enum {
    TYPE,
    DROPOUT,
    PREFIX,
    SUFFIX,
    UNKNOWN,
    FUSE_UNKNOWN,
    BYTE_FALLBACK,
    IGNORE_MERGES,
    VOCAB,
    MERGES,
    MEMBERS,
};

static const char *const member_names[MEMBERS] = {"type",
                                                  "dropout",
                                                  "continuing_subword_prefix",
                                                  "end_of_word_suffix",
                                                  "unk_token",
                                                  "fuse_unk",
                                                  "byte_fallback",
                                                  "ignore_merges",
                                                  "vocab",
                                                  "merges"};

static llm_status check_options(const JsonValue *members, llm_error *error) {
    double chance;
    if (json_type(members[TYPE]) != JSON_ABSENT && !json_string_is(members[TYPE], "BPE"))
        return fail(error, LLM_UNSUPPORTED,
                    "This bundle's tokenizer is no byte-pair encoding (BPE), the only kind that "
                    "the native runtime has: use the Python runtime, or token ids.");
    if (json_double(members[DROPOUT], &chance) && chance != 0)
        return fail(error, LLM_UNSUPPORTED, "A tokenizer with dropout has no one result.");
    if (json_string_size(members[PREFIX]) || json_string_size(members[SUFFIX]))
        return fail(error, LLM_UNSUPPORTED,
                    "The native runtime has no tokenizers with prefixes or suffixes of subwords.");
    return LLM_OK;
}

static bool is_true(JsonValue value) { return json_type(value) == JSON_TRUE; }

llm_status bpe_read(JsonValue model, bool is_byte_level, Memory *memory, Bpe *bpe,
                    llm_error *error) {
    JsonValue members[MEMBERS];
    json_members(model, member_names, members, MEMBERS);
    TRY(check_options(members, error));
    TRY(vocabulary_read(members[VOCAB], memory, &bpe->vocabulary, error));
    TRY(read_merges(members[MERGES], memory, bpe, error));
    bpe->is_byte_level = is_byte_level;
    bpe->has_byte_fallback = is_true(members[BYTE_FALLBACK]);
    bpe->fuses_unknown = is_true(members[FUSE_UNKNOWN]);
    bpe->ignores_merges = is_true(members[IGNORE_MERGES]);
    bpe->unknown = vocabulary_find_json(&bpe->vocabulary, members[UNKNOWN]);
    if (json_string_size(members[UNKNOWN]) && bpe->unknown == NO_TOKEN)
        return fail(error, LLM_DAMAGED, "The token for unknown text isn't in the vocabulary.");
    find_initial_tokens(bpe);
    if (is_byte_level && bpe->has_byte_fallback)
        return fail(error, LLM_UNSUPPORTED,
                    "The native runtime has no tokenizers with both bytes and byte fallback.");
    return LLM_OK;
}
