#include "session.h"

#include "options.h"

#include <string.h>

enum { DEFAULT_CAPACITY = 4096, DEFAULT_CHUNK = 192, MOST_ROWS = 1024 };

static llm_status choose_capacity(const Manifest *manifest, size_t wanted, size_t *capacity,
                                  llm_error *error) {
    const size_t longest = manifest->max_length, fixed = manifest->max_sequence;
    *capacity = wanted  ? wanted
                : fixed ? fixed
                        : (longest < DEFAULT_CAPACITY ? longest : DEFAULT_CAPACITY);
    if (*capacity <= longest && (!fixed || *capacity == fixed))
        return LLM_OK;
    return fail(error, LLM_INVALID_ARGUMENT,
                "The capacity is %zu, but this model takes %s %zu tokens: change it.", *capacity,
                fixed ? "exactly" : "at most", fixed ? fixed : longest);
}

static llm_status choose_rows(const Manifest *manifest, size_t wanted, size_t *rows,
                              llm_error *error) {
    const size_t most = manifest->max_rows ? manifest->max_rows : MOST_ROWS;
    *rows = wanted ? wanted : 1;
    return *rows <= most ? LLM_OK
                         : fail(error, LLM_INVALID_ARGUMENT,
                                "There are %zu rows, but this model takes at most %zu: take fewer.",
                                *rows, most);
}

static llm_status create_in(const llm_session_options *options, llm_session *session,
                            llm_error *error) {
    const llm_model *const model = session->model;
    const Manifest *const manifest = &model->manifest;
    Memory *const memory = &session->memory;
    size_t capacity, rows;
    TRY(choose_capacity(manifest, options->capacity, &capacity, error));
    TRY(choose_rows(manifest, options->rows, &rows, error));
    session->chunk = options->chunk ? options->chunk : DEFAULT_CHUNK;
    session->random = random_from_entropy();
    TRY(memory_take(memory, capacity, sizeof(llm_token), &session->tokens, error));
    TRY(memory_take(memory, manifest->vocab_size, sizeof(float), &session->logits, error));
    TRY(sampler_create(manifest->vocab_size, memory, &session->sampler, error));
    TRY(text_stream_create(model, &session->stream, error));
    TRY(kv_cache_create(&model->engine, manifest, rows, capacity, memory, &session->cache, error));
    return steps_create(&model->engine, manifest, &session->cache, memory, &session->steps, error);
}

llm_status llm_session_create(const llm_model *model, const llm_session_options *options,
                              llm_session **session, llm_error *error) {
    llm_session_options given = {.size = sizeof given};
    TRY(OPTIONS_READ(options, given, error));
    Memory memory = memory_from(&model->memory.allocator);
    llm_session *created;
    TRY(memory_take(&memory, 1, sizeof *created, &created, error));
    created->memory = memory;
    created->model = model;
    const llm_status status = create_in(&given, created, error);
    if (status != LLM_OK)
        llm_session_free(created);
    else
        *session = created;
    return status;
}

void llm_session_free(llm_session *session) {
    if (!session)
        return;
    steps_free(&session->steps);
    text_stream_free(&session->stream);
    kv_cache_free(&session->model->engine, &session->cache);
    Memory memory = session->memory; /* the session is in it */
    memory_free(&memory);
}

const llm_token *llm_session_tokens(const llm_session *session, size_t *count) {
    *count = session->length;
    return session->tokens;
}

size_t llm_session_capacity(const llm_session *session) { return session->cache.capacity; }

const float *llm_session_logits(const llm_session *session) {
    return session->length > 0 && session->cached == session->length ? session->logits : NULL;
}

void llm_session_seed(llm_session *session, uint64_t seed) {
    session->random = random_from_seed(seed);
}

llm_status session_append(llm_session *session, const llm_token *ids, size_t count,
                          llm_error *error) {
    const size_t capacity = session->cache.capacity;
    const size_t vocab_size = session->model->manifest.vocab_size;
    if (count > capacity - session->length)
        return fail(error, LLM_NO_ROOM,
                    "%zu tokens more don't fit: the text has %zu and the capacity is %zu.", count,
                    session->length, capacity);
    for (size_t i = 0; i < count; i++)
        if (ids[i] < 0 || (uint64_t)ids[i] >= vocab_size)
            return fail(error, LLM_INVALID_ARGUMENT,
                        "There is a token id %lld, but this model's ids are from 0 to %zu: use the "
                        "tokenizer that belongs to it.",
                        (long long)ids[i], vocab_size - 1);
    memmove(session->tokens + session->length, ids, count * sizeof *ids);
    session->length += count;
    return LLM_OK;
}

llm_status session_append_text(llm_session *session, const char *text, llm_error *error) {
    const Tokenizer *tokenizer;
    size_t count;
    TRY(model_tokenizer(session->model, &tokenizer, error));
    llm_token *const ids = session->tokens + session->length;
    TRY(tokenizer_encode(tokenizer, text, strlen(text), session->length == 0,
                         &session->stream.scratch, ids, session->cache.capacity - session->length,
                         &count, error));
    return session_append(session, ids, count, error);
}

llm_status session_run(llm_session *session, llm_error *error) {
    const bool is_long = session->length - session->cached >= LONG_PROMPT;
    while (session->cached < session->length) {
        const size_t left = session->length - session->cached;
        const size_t count = left < session->chunk ? left : session->chunk;
        const int64_t past = (int64_t)session->cached, last = (int64_t)count - 1;
        const Step step = {
            .rows = 1,
            .count = count,
            .picked = 1,
            .ids = session->tokens + session->cached,
            .past_lengths = &past,
            .positions = &last,
            .logits = session->logits,
            /* Parts of one prompt share the memory. */
            .gives_back = is_long && count == left,
        };
        TRY(steps_run(&session->steps, &step, error));
        session->cached += count;
    }
    return LLM_OK;
}

/* Append and run; what can't be run isn't appended. */
static llm_status extend(llm_session *session, const llm_token *ids, size_t count,
                         llm_error *error) {
    const size_t length = session->length;
    TRY(session_append(session, ids, count, error));
    const llm_status status = session_run(session, error);
    if (status != LLM_OK)
        llm_rollback(session, length, NULL);
    return status;
}

llm_status llm_prefill(llm_session *session, const llm_token *ids, size_t count, llm_error *error) {
    TRY(extend(session, ids, count, error));
    session->prompt_length = session->length;
    return LLM_OK;
}

llm_status llm_decode(llm_session *session, llm_token id, llm_error *error) {
    return extend(session, &id, 1, error);
}

llm_status llm_rollback(llm_session *session, size_t length, llm_error *error) {
    if (length > session->length)
        return fail(error, LLM_INVALID_ARGUMENT, "The text has only %zu tokens.", session->length);
    if (length == session->length)
        return LLM_OK;
    const size_t runnable = length > 0 ? length - 1 : 0;
    session->length = length;
    if (session->prompt_length > length)
        session->prompt_length = length;
    if (session->cached > runnable)
        session->cached = runnable;
    return LLM_OK;
}

llm_status session_choose(llm_session *session, const llm_sampling *sampling,
                          const llm_token *forbidden, size_t forbidden_count, llm_token *id,
                          llm_error *error) {
    const Text text = {session->tokens, session->length, session->prompt_length};
    return sampler_choose(&session->sampler, session->logits, sampling, text, forbidden,
                          forbidden_count, &session->random, id, error);
}

llm_status llm_sample(llm_session *session, const llm_sampling *sampling, llm_token *id,
                      llm_error *error) {
    llm_sampling given = {.size = sizeof given};
    TRY(OPTIONS_READ(sampling, given, error));
    TRY(sampling_check(&given, session->model->manifest.vocab_size, error));
    if (!llm_session_logits(session))
        return fail(error, LLM_INVALID_ARGUMENT,
                    "There are no logits to choose by: run a token first.");
    return session_choose(session, &given, NULL, 0, id, error);
}

llm_status llm_session_step(llm_session *session, size_t first_row, size_t rows, size_t count,
                            const llm_token *ids, const int64_t *past_lengths, size_t picked,
                            const int64_t *positions, float *logits, llm_error *error) {
    const Step step = {
        first_row, rows, count, picked, ids, past_lengths, positions, logits, count >= LONG_PROMPT};
    return steps_run(&session->steps, &step, error);
}

void *llm_session_cache(llm_session *session, size_t layer, int part, size_t *heads, size_t *dim,
                        size_t *bytes) {
    const size_t index = 2 * layer + (part != 0);
    if (layer >= session->cache.count / 2 || session->model->engine.gpu)
        return NULL;
    const CacheBuffer *const buffer = &session->cache.buffers[index];
    *heads = (size_t)buffer->shape[1];
    *dim = (size_t)buffer->shape[3];
    *bytes = element_bytes[session->cache.type];
    return buffer->data;
}
