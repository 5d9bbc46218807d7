#include "tokenizer.h"

#include <string.h>

#include "failure.h"
#include "utf8.h"

/* Places in a word have 32 bits; texts become at most three times as long by normalization. */
#define LONGEST_TEXT ((size_t)UINT32_MAX / 8)

void tokenizer_scratch_begin(TokenizerScratch *scratch, const llm_allocator *allocator) {
    *scratch = (TokenizerScratch){.memory = memory_from(allocator)};
    scratch->regex.memory = &scratch->memory;
}

void tokenizer_scratch_end(TokenizerScratch *scratch) { memory_free(&scratch->memory); }

/* ---- Encoding ---- */

typedef struct {
    const Tokenizer *tokenizer;
    TokenizerScratch *scratch;
    llm_error *error;
} Encoder;

static llm_status take_word(void *user_data, const char *word, size_t size) {
    const Encoder *encoder = user_data;
    TokenizerScratch *scratch = encoder->scratch;
    return bpe_encode(&encoder->tokenizer->bpe, word, size, &scratch->bpe, &scratch->ids,
                      &scratch->memory, encoder->error);
}

static llm_status add_id(const Encoder *encoder, uint32_t id) {
    TokenizerScratch *scratch = encoder->scratch;
    TRY(buffer_reserve(&scratch->ids, 1, sizeof id, &scratch->memory, encoder->error));
    ((uint32_t *)scratch->ids.items)[scratch->ids.count++] = id;
    return LLM_OK;
}

static llm_status encode_words(const Encoder *encoder, const char *text, size_t size,
                               bool is_first) {
    TokenizerScratch *scratch = encoder->scratch;
    return splitter_run(&encoder->tokenizer->splitter, text, size, is_first, &scratch->splitter,
                        &scratch->regex, (WordTaker){take_word, (void *)encoder}, encoder->error);
}

static llm_status encode_normalized(const Encoder *encoder, const char *text, size_t size,
                                    bool is_first) {
    const AddedTokens *added = &encoder->tokenizer->added;
    AddedCursor cursor = {0};
    const AddedToken *token;
    Span found;
    TokenizerScratch *scratch = encoder->scratch;
    TRY(normalizer_run(&encoder->tokenizer->normalizer, &text, &size, &scratch->normalizer,
                       &scratch->regex, encoder->error));
    size_t at = 0;
    while ((token = added_tokens_next(added, &added->normalized, text, size, &cursor, &found))) {
        if (found.start > at)
            TRY(encode_words(encoder, text + at, found.start - at, is_first && at == 0));
        TRY(add_id(encoder, token->id));
        at = found.end;
    }
    return encode_words(encoder, text + at, size - at, is_first && at == 0);
}

static llm_status encode(const Encoder *encoder, const char *text, size_t size) {
    const AddedTokens *added = &encoder->tokenizer->added;
    AddedCursor cursor = {0};
    const AddedToken *token;
    Span found;
    size_t at = 0;
    while ((token = added_tokens_next(added, &added->raw, text, size, &cursor, &found))) {
        if (found.start > at)
            TRY(encode_normalized(encoder, text + at, found.start - at, at == 0));
        TRY(add_id(encoder, token->id));
        at = found.end;
    }
    return encode_normalized(encoder, text + at, size - at, at == 0);
}

/* Point `*text` to valid UTF-8: to itself where it is. */
static llm_status mend(const char **text, size_t *size, TokenizerScratch *scratch,
                       llm_error *error) {
    Buffer *mended = &scratch->mended;
    bool is_valid = true;
    size_t good = 0; /* where what isn't copied yet begins */
    mended->count = 0;
    for (size_t at = 0, taken; at < *size; at += taken) {
        uint32_t code_point;
        taken = utf8_read(*text + at, *size - at, &code_point);
        if (code_point != UTF8_INVALID)
            continue;
        char replacement[UTF8_LONGEST];
        const size_t length = utf8_write(REPLACEMENT_CHARACTER, replacement);
        TRY(buffer_append(mended, *text + good, at - good, &scratch->memory, error));
        TRY(buffer_append(mended, replacement, length, &scratch->memory, error));
        good = at + taken;
        is_valid = false;
    }
    if (is_valid)
        return LLM_OK;
    TRY(buffer_append(mended, *text + good, *size - good, &scratch->memory, error));
    *text = mended->items;
    *size = mended->count;
    return LLM_OK;
}

llm_status tokenizer_encode(const Tokenizer *tokenizer, const char *text, size_t size,
                            bool adds_special_tokens, TokenizerScratch *scratch, llm_token *ids,
                            size_t capacity, size_t *count, llm_error *error) {
    const Encoder encoder = {tokenizer, scratch, error};
    const size_t before = adds_special_tokens ? tokenizer->before_count : 0;
    const size_t after = adds_special_tokens ? tokenizer->after_count : 0;
    if (size > LONGEST_TEXT)
        return fail(error, LLM_NO_ROOM, "A text of %zu bytes is too long to tokenize.", size);
    text = size ? text : "";
    scratch->ids.count = 0;
    TRY(mend(&text, &size, scratch, error));
    TRY(encode(&encoder, text, size));
    const uint32_t *found = scratch->ids.items;
    *count = before + scratch->ids.count + after;
    if (*count > capacity)
        return fail(error, LLM_NO_ROOM, "The text has %zu tokens; there is room for %zu.", *count,
                    capacity);
    for (size_t i = 0; i < before; i++)
        *ids++ = tokenizer->before[i];
    for (size_t i = 0; i < scratch->ids.count; i++)
        *ids++ = found[i];
    for (size_t i = 0; i < after; i++)
        *ids++ = tokenizer->after[i];
    return LLM_OK;
}

/* ---- Decoding ---- */

/* A token's text; NULL if there is no such token. */
static const char *text_of(const Tokenizer *tokenizer, llm_token id, size_t *size) {
    const Vocabulary *vocabulary = &tokenizer->bpe.vocabulary;
    const AddedToken *added = id < 0 ? NULL : added_token_of(&tokenizer->added, (uint64_t)id);
    *size = 0;
    if (added) {
        *size = added->size;
        return added->text;
    }
    if (id < 0 || (uint64_t)id >= vocabulary->id_count)
        return NULL;
    *size = vocabulary->tokens[id].size;
    return vocabulary->tokens[id].text;
}

bool tokenizer_is_silent(const Tokenizer *tokenizer, llm_token id) {
    const AddedToken *added = id < 0 ? NULL : added_token_of(&tokenizer->added, (uint64_t)id);
    size_t size;
    return added ? added->is_special : !text_of(tokenizer, id, &size);
}

bool tokenizer_is_byte(const Tokenizer *tokenizer, llm_token id) {
    size_t size;
    const char *text = text_of(tokenizer, id, &size);
    return text && decoder_takes_as_byte(&tokenizer->decoder, text, size);
}

/* tokenizers compares a token's normalized text with those of special tokens. */
static bool is_skipped(const Tokenizer *tokenizer, llm_token id) {
    const AddedToken *added = added_token_of(&tokenizer->added, (uint64_t)id);
    return added && added->is_special && !added->is_changed;
}

llm_status tokenizer_decode(const Tokenizer *tokenizer, const llm_token *ids, size_t count,
                            bool skips_special, TokenizerScratch *scratch, const char **text,
                            size_t *size, llm_error *error) {
    Pieces *pieces = scratch->pieces;
    pieces->text.count = pieces->ends.count = 0;
    for (size_t i = 0; i < count; i++) {
        size_t length;
        const char *token = text_of(tokenizer, ids[i], &length);
        if (token && !(skips_special && is_skipped(tokenizer, ids[i])))
            TRY(pieces_add(pieces, token, length, &scratch->memory, error));
    }
    return decoder_run(&tokenizer->decoder, pieces, &scratch->regex, text, size, error);
}

/* ---- Reading ---- */

static llm_status add_frame_token(uint32_t *tokens, size_t *count, int64_t id, llm_error *error) {
    if (*count == MOST_FRAME_TOKENS || id < 0 || id >= NO_TOKEN)
        return fail(error, LLM_UNSUPPORTED, "The tokenizer adds too many special tokens.");
    tokens[(*count)++] = (uint32_t)id;
    return LLM_OK;
}

/* Put a frame's tokens around those that are there. */
static llm_status enclose(Tokenizer *tokenizer, const uint32_t *before, size_t before_count,
                          const uint32_t *after, size_t after_count, llm_error *error) {
    const size_t inner = tokenizer->before_count;
    if (inner + before_count > MOST_FRAME_TOKENS)
        return fail(error, LLM_UNSUPPORTED, "The tokenizer adds too many special tokens.");
    memmove(tokenizer->before + before_count, tokenizer->before, inner * sizeof *before);
    memcpy(tokenizer->before, before, before_count * sizeof *before);
    tokenizer->before_count += before_count;
    for (size_t i = 0; i < after_count; i++)
        TRY(add_frame_token(tokenizer->after, &tokenizer->after_count, after[i], error));
    return LLM_OK;
}

/* {"single": [{"SpecialToken": {"id": "<s>"}}, {"Sequence": {"id": "A"}}, ...],
 *  "special_tokens": {"<s>": {"ids": [1]}}} */
static llm_status read_template(JsonValue json, Tokenizer *tokenizer, llm_error *error) {
    uint32_t tokens[2][MOST_FRAME_TOKENS];
    size_t counts[2] = {0}, part = 0;
    char name[256];
    for (JsonItems items = json_items(json_member(json, "single")); json_next(&items);) {
        const JsonValue special = json_member(items.value, "SpecialToken");
        if (json_type(special) == JSON_ABSENT) {
            part++;
            continue;
        }
        const JsonValue id = json_member(special, "id");
        if (part > 1 || json_string_size(id) >= sizeof name)
            break;
        memset(name, 0, sizeof name);
        json_string_copy(id, name);
        const JsonValue token = json_member(json_member(json, "special_tokens"), name);
        for (JsonItems ids = json_items(json_member(token, "ids")); json_next(&ids);) {
            int64_t value = -1;
            json_integer(ids.value, &value);
            TRY(add_frame_token(tokens[part], &counts[part], value, error));
        }
    }
    if (part != 1)
        return fail(error, LLM_UNSUPPORTED, "The tokenizer's template isn't a text and tokens.");
    return enclose(tokenizer, tokens[0], counts[0], tokens[1], counts[1], error);
}

/* {"cls": ["<s>", 0], "sep": ["</s>", 2]} */
static llm_status read_pair(JsonValue json, Tokenizer *tokenizer, llm_error *error) {
    static const char *const names[] = {"cls", "sep"};
    uint32_t tokens[2][1];
    for (int part = 0; part < 2; part++) {
        JsonItems items = json_items(json_member(json, names[part]));
        int64_t id;
        size_t count = 0;
        if (!json_next(&items) || !json_next(&items) || !json_integer(items.value, &id))
            return fail(error, LLM_DAMAGED, "The tokenizer's special tokens have no ids.");
        TRY(add_frame_token(tokens[part], &count, id, error));
    }
    return enclose(tokenizer, tokens[0], 1, tokens[1], 1, error);
}

static llm_status read_post_processor(JsonValue json, Tokenizer *tokenizer, llm_error *error) {
    const JsonValue type = json_member(json, "type");
    if (json_type(json) == JSON_ABSENT || json_type(json) == JSON_NULL ||
        json_string_is(type, "ByteLevel"))
        return LLM_OK;
    if (json_string_is(type, "Sequence")) {
        JsonItems items = json_items(json_member(json, "processors"));
        while (json_next(&items))
            TRY(read_post_processor(items.value, tokenizer, error));
        return LLM_OK;
    }
    if (json_string_is(type, "TemplateProcessing"))
        return read_template(json, tokenizer, error);
    if (json_string_is(type, "BertProcessing") || json_string_is(type, "RobertaProcessing"))
        return read_pair(json, tokenizer, error);
    return fail(error, LLM_UNSUPPORTED,
                "This bundle's tokenizer has a post-processor that the native runtime doesn't "
                "have: use the Python runtime, or token ids.");
}

static llm_status read_parts(JsonValue json, Memory *memory, Tokenizer *tokenizer,
                             TokenizerScratch *scratch, llm_error *error) {
    enum { NORMALIZER, PRE_TOKENIZER, DECODER, POST_PROCESSOR, MODEL, ADDED_TOKENS, PARTS };
    static const char *const names[PARTS] = {"normalizer",     "pre_tokenizer", "decoder",
                                             "post_processor", "model",         "added_tokens"};
    JsonValue parts[PARTS];
    json_members(json, names, parts, PARTS);
    TRY(normalizer_read(parts[NORMALIZER], memory, &tokenizer->normalizer, error));
    TRY(splitter_read(parts[PRE_TOKENIZER], memory, &tokenizer->splitter, error));
    TRY(decoder_read(parts[DECODER], memory, &tokenizer->decoder, error));
    TRY(read_post_processor(parts[POST_PROCESSOR], tokenizer, error));
    TRY(bpe_read(parts[MODEL], tokenizer->splitter.is_byte_level, memory, &tokenizer->bpe, error));
    return added_tokens_read(parts[ADDED_TOKENS], &tokenizer->bpe.vocabulary,
                             &tokenizer->normalizer, &scratch->normalizer, &scratch->regex, memory,
                             &tokenizer->added, error);
}

llm_status tokenizer_open(const char *json, size_t size, Memory *memory,
                          const Tokenizer **tokenizer, llm_error *error) {
    JsonValue root;
    JsonError wrong;
    Tokenizer *opened;
    TokenizerScratch scratch;
    if (!json_read(json, size, &root, &wrong))
        return fail(error, LLM_DAMAGED, "tokenizer.json isn't JSON: %s, at byte %zu.", wrong.reason,
                    wrong.offset);
    TRY(memory_take(memory, 1, sizeof *opened, &opened, error));
    tokenizer_scratch_begin(&scratch, &memory->allocator);
    const llm_status status = read_parts(root, memory, opened, &scratch, error);
    tokenizer_scratch_end(&scratch);
    *tokenizer = opened;
    return status;
}
