/* Generating a text: run what is new, choose, until something ends it. */
#include "options.h"
#include "session.h"

#include <string.h>

typedef struct {
    llm_session *session;
    const llm_generation *wish;
    llm_sampling sampling;
    size_t most; /* new tokens */
    llm_generated made;
} Generation;

static bool is_eos(const Manifest *manifest, llm_token id) {
    for (size_t i = 0; i < manifest->eos_count; i++)
        if (manifest->eos[i] == id)
            return true;
    return false;
}

static llm_status append_prompt(llm_session *session, const llm_generation *wish,
                                llm_error *error) {
    const size_t before = session->length;
    TRY(wish->prompt_text ? session_append_text(session, wish->prompt_text, error)
                          : session_append(session, wish->prompt, wish->prompt_count, error));
    if (session->length == 0)
        return fail(error, LLM_INVALID_ARGUMENT, "The prompt is empty: give at least one token.");
    if (session->length == session->cache.capacity) {
        llm_rollback(session, before, NULL);
        return fail(error, LLM_NO_ROOM,
                    "The prompt fills the capacity of %zu: take a larger one or a shorter prompt.",
                    session->cache.capacity);
    }
    session->prompt_length = session->length;
    return LLM_OK;
}

static llm_status choose_next(Generation *generation, llm_token *id, llm_error *error) {
    llm_session *const session = generation->session;
    const llm_generation *const wish = generation->wish;
    const Manifest *const manifest = &session->model->manifest;
    const bool must_go_on = generation->made.new_tokens < wish->min_new_tokens && !wish->ignore_eos;
    TRY(session_choose(session, &generation->sampling, manifest->eos,
                       must_go_on ? manifest->eos_count : 0, id, error));
    return session_append(session, id, 1, error);
}

/* Say why a text ends with its newest token, if it does, and give its piece to the caller. */
static llm_status take(Generation *generation, llm_token id, llm_error *error) {
    const llm_generation *const wish = generation->wish;
    llm_session *const session = generation->session;
    llm_generated *const made = &generation->made;
    if (++made->new_tokens == generation->most)
        made->finish = LLM_FINISH_LENGTH;
    if (!wish->ignore_eos && is_eos(&session->model->manifest, id))
        made->finish = LLM_FINISH_EOS;
    if (!wish->on_piece)
        return LLM_OK;
    llm_piece piece = {.id = id, .finish = made->finish};
    TRY(text_stream_push(&session->stream, id, made->finish != LLM_RUNNING, &piece.text,
                         &piece.length, error));
    if (!wish->on_piece(&piece, wish->user_data) && made->finish == LLM_RUNNING)
        made->finish = LLM_FINISH_STOPPED;
    return LLM_OK;
}

llm_status llm_generate(llm_session *session, const llm_generation *wish, llm_generated *generated,
                        llm_error *error) {
    llm_generation given = {.size = sizeof given};
    Generation generation = {
        .session = session, .wish = &given, .sampling = {.size = sizeof(llm_sampling)}};
    TRY(OPTIONS_READ(wish, given, error));
    TRY(OPTIONS_READ(given.sampling, generation.sampling, error));
    TRY(sampling_check(&generation.sampling, session->model->manifest.vocab_size, error));
    TRY(append_prompt(session, &given, error));
    if (given.has_seed)
        llm_session_seed(session, given.seed);
    TRY(text_stream_restart(&session->stream, session->tokens, session->length, error));
    const size_t room = session->cache.capacity - session->length;
    generation.most =
        given.max_new_tokens && given.max_new_tokens < room ? given.max_new_tokens : room;
    generation.made.prompt_tokens = session->length;
    while (generation.made.finish == LLM_RUNNING) {
        llm_token id;
        TRY(session_run(session, error));
        TRY(choose_next(&generation, &id, error));
        TRY(take(&generation, id, error));
    }
    if (generated)
        *generated = generation.made;
    return LLM_OK;
}
