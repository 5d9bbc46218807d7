/* What must hold of the library's interface in C, for sanitizers and valgrind to watch.
 *
 *     checks BUNDLE ONNXRUNTIME [KERNELS]
 *
 * The bundle has a tokenizer, and its text is made of ASCII letters. Exits with 1, and says where,
 * if something doesn't hold.
 */
#include "llm_runtime.h"

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "%s:%d: %s (%s)\n", __FILE__, __LINE__, #condition, error.message);    \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

enum { CAPACITY = 64, NEW = 20 };

static const llm_token prompt[] = {3, 1, 4, 1, 5, 9, 2, 6};
static const size_t prompt_count = sizeof prompt / sizeof *prompt;

static const char *bundle, *onnxruntime, *kernels;
static llm_error error;

/* An allocator that counts, and fails when so many allocations were made. */
typedef struct {
    size_t made, living, failing;
} Heap;

static void *allocate(size_t bytes, void *user_data) {
    Heap *const heap = user_data;
    if (++heap->made == heap->failing)
        return NULL;
    heap->living++;
    return calloc(1, bytes);
}

static void release(void *memory, void *user_data) {
    ((Heap *)user_data)->living -= memory != NULL;
    free(memory);
}

static llm_model_options options_with(Heap *heap) {
    return (llm_model_options){
        .size = sizeof(llm_model_options),
        .onnxruntime = onnxruntime,
        .kernels = kernels,
        .threads = 1,
        .allocator = {allocate, release, heap},
    };
}

static llm_model *open_with(Heap *heap) {
    const llm_model_options options = options_with(heap);
    llm_model *model;
    CHECK(llm_model_open(bundle, &options, &model, &error) == LLM_OK);
    return model;
}

static const llm_session_options small = {
    .size = sizeof small, .capacity = CAPACITY, .rows = 3, .chunk = 5};

static llm_session *session_of(const llm_model *model) {
    llm_session *session;
    CHECK(llm_session_create(model, &small, &session, &error) == LLM_OK);
    return session;
}

static llm_generation wish_of(size_t new) {
    return (llm_generation){.size = sizeof(llm_generation),
                            .prompt = prompt,
                            .prompt_count = prompt_count,
                            .max_new_tokens = new,
                            .ignore_eos = true};
}

static bool count_pieces(const llm_piece *piece, void *user_data) {
    CHECK(strlen(piece->text) == piece->length);
    return --*(int *)user_data != 0;
}

static void check_that_nothing_is_allocated_after_opening(void) {
    Heap heap = {0};
    llm_model *const model = open_with(&heap);
    llm_session *const session = session_of(model);
    const llm_sampling sampling = {.size = sizeof sampling,
                                   .temperature = 1,
                                   .top_k = 20,
                                   .top_p = 0.9,
                                   .min_p = 0.01,
                                   .repetition_penalty = 1.1,
                                   .presence_penalty = 0.1,
                                   .frequency_penalty = 0.1};
    const size_t opened = heap.made;
    int pieces = -1;
    llm_token id;
    CHECK(llm_prefill(session, prompt, prompt_count, &error) == LLM_OK);
    for (int i = 0; i < NEW; i++) {
        CHECK(llm_sample(session, &sampling, &id, &error) == LLM_OK);
        CHECK(llm_decode(session, id, &error) == LLM_OK);
    }
    CHECK(llm_rollback(session, 4, &error) == LLM_OK);
    llm_generation wish = wish_of(NEW);
    wish.sampling = &sampling;
    wish.on_piece = count_pieces;
    wish.user_data = &pieces;
    CHECK(llm_generate(session, &wish, NULL, &error) == LLM_OK);
    CHECK(pieces == -1 - NEW);
    CHECK(heap.made == opened);
    llm_session_free(session);
    llm_model_close(model);
    CHECK(heap.living == 0);
}

/* Open, generate and close; the first status that isn't LLM_OK. */
static llm_status everything(Heap *heap) {
    const llm_model_options options = options_with(heap);
    llm_model *model;
    llm_session *session;
    int pieces = -1;
    llm_status status = llm_model_open(bundle, &options, &model, &error);
    if (status != LLM_OK)
        return status;
    status = llm_session_create(model, &small, &session, &error);
    if (status == LLM_OK) {
        llm_generation wish = wish_of(3);
        wish.prompt_text = "some text";
        wish.on_piece = count_pieces;
        wish.user_data = &pieces;
        status = llm_generate(session, &wish, NULL, &error);
        llm_session_free(session);
    }
    llm_model_close(model);
    return status;
}

static void check_that_failing_allocations_are_statuses(void) {
    Heap heap = {0};
    CHECK(everything(&heap) == LLM_OK && heap.living == 0);
    const size_t all = heap.made;
    for (size_t failing = 1; failing <= all; failing++) {
        heap = (Heap){.failing = failing};
        CHECK(everything(&heap) == LLM_OUT_OF_MEMORY);
        CHECK(heap.living == 0);
    }
    printf("%zu allocations\n", all);
}

typedef struct {
    const llm_model *model;
    llm_token ids[NEW];
} Task;

static void *generate_greedily(void *argument) {
    Task *const task = argument;
    const llm_generation wish = wish_of(NEW);
    size_t count;
    llm_session *const session = session_of(task->model);
    CHECK(llm_generate(session, &wish, NULL, &error) == LLM_OK);
    const llm_token *const ids = llm_session_tokens(session, &count);
    CHECK(count == prompt_count + NEW);
    memcpy(task->ids, ids + prompt_count, sizeof task->ids);
    llm_session_free(session);
    return NULL;
}

static void check_that_threads_share_a_model(void) {
    enum { THREADS = 4 };
    llm_model *const model = open_with(&(Heap){0});
    pthread_t threads[THREADS];
    Task tasks[THREADS], alone = {.model = model};
    generate_greedily(&alone);
    for (int i = 0; i < THREADS; i++) {
        tasks[i].model = model;
        CHECK(pthread_create(&threads[i], NULL, generate_greedily, &tasks[i]) == 0);
    }
    for (int i = 0; i < THREADS; i++) {
        CHECK(pthread_join(threads[i], NULL) == 0);
        CHECK(memcmp(tasks[i].ids, alone.ids, sizeof alone.ids) == 0);
    }
    llm_model_close(model);
}

/* Logits of a text that was rolled back, and of rows in one step, are those of the text alone. */
static void check_that_rolling_back_forgets(void) {
    llm_model *const model = open_with(&(Heap){0});
    llm_session *const session = session_of(model);
    llm_model_info info = {.size = sizeof info};
    llm_model_describe(model, &info);
    CHECK(info.has_tokenizer && info.eos_count == 1 && info.layers > 0);
    const size_t bytes = info.vocab_size * sizeof(float);
    float *const expected = malloc(bytes), *const rows = malloc(3 * bytes);
    CHECK(expected && rows && !llm_session_logits(session));
    CHECK(llm_prefill(session, prompt, 6, &error) == LLM_OK);
    memcpy(expected, llm_session_logits(session), bytes);
    CHECK(llm_prefill(session, prompt, 7, &error) == LLM_OK);
    CHECK(memcmp(expected, llm_session_logits(session), bytes) != 0);
    CHECK(llm_rollback(session, 4, &error) == LLM_OK && !llm_session_logits(session));
    CHECK(llm_prefill(session, prompt + 4, 2, &error) == LLM_OK);
    for (size_t i = 0; i < info.vocab_size; i++)
        CHECK(fabsf(expected[i] - llm_session_logits(session)[i]) < 1e-4f);
    const int64_t past[] = {0, 0, 0}, zeros[] = {0, 0, 0};
    const llm_token same[] = {7, 7, 7};
    CHECK(llm_session_step(session, 0, 3, 1, same, past, 1, zeros, rows, &error) == LLM_OK);
    CHECK(memcmp(rows, rows + 2 * info.vocab_size, bytes) == 0);
    free(expected);
    free(rows);
    llm_session_free(session);
    llm_model_close(model);
}

static void check_wrong_options(void) {
    llm_model *model = NULL;
    llm_model_options options = options_with(&(Heap){0});
    options.size = 0;
    CHECK(llm_model_open(bundle, &options, &model, &error) == LLM_INVALID_ARGUMENT);
    options.size = sizeof options;
    options.provider = "abacus";
    CHECK(llm_model_open(bundle, &options, &model, &error) == LLM_INVALID_ARGUMENT);
    options.provider = NULL;
    options.onnxruntime = bundle;
    CHECK(llm_model_open(bundle, &options, &model, &error) == LLM_NOT_FOUND);
    CHECK(llm_model_open("/nowhere", NULL, &model, NULL) == LLM_NOT_FOUND);
    CHECK(llm_model_open("/", NULL, &model, &error) == LLM_NOT_A_BUNDLE);
    CHECK(!model);
    llm_model_close(NULL);
    llm_session_free(NULL);
}

static void check_wrong_arguments(void) {
    llm_model *const model = open_with(&(Heap){0});
    llm_session *session = NULL;
    const llm_session_options large = {.size = sizeof large, .capacity = (size_t)1 << 60};
    const llm_token wrong[] = {0, 1 << 30, -1};
    const int64_t past[] = {CAPACITY, -1}, zero = 0;
    llm_token id, ids[4];
    size_t count;
    char text[4];
    float logits[1];
    CHECK(llm_session_create(model, &large, &session, &error) == LLM_INVALID_ARGUMENT && !session);
    session = session_of(model);
    CHECK(llm_sample(session, NULL, &id, &error) == LLM_INVALID_ARGUMENT);
    CHECK(llm_prefill(session, wrong, 2, &error) == LLM_INVALID_ARGUMENT);
    CHECK(llm_decode(session, -1, &error) == LLM_INVALID_ARGUMENT);
    CHECK(llm_rollback(session, 1, &error) == LLM_INVALID_ARGUMENT);
    for (size_t i = 0; i < CAPACITY / prompt_count; i++)
        CHECK(llm_prefill(session, prompt, prompt_count, &error) == LLM_OK);
    CHECK(llm_decode(session, 1, &error) == LLM_NO_ROOM);
    const llm_generation wish = wish_of(1);
    CHECK(llm_generate(session, &wish, NULL, &error) == LLM_NO_ROOM);
    const llm_sampling cold = {.size = sizeof cold, .temperature = NAN};
    CHECK(llm_sample(session, &cold, &id, &error) == LLM_INVALID_ARGUMENT);
    const llm_sampling biased = {
        .size = sizeof biased, .bias_ids = &wrong[1], .bias = logits, .bias_count = 1};
    CHECK(llm_sample(session, &biased, &id, &error) == LLM_INVALID_ARGUMENT);
    CHECK(llm_session_step(session, 3, 1, 1, wrong, past, 1, &zero, logits, &error) ==
          LLM_INVALID_ARGUMENT);
    CHECK(llm_session_step(session, 0, 1, 1, wrong, past, 1, &zero, logits, &error) == LLM_NO_ROOM);
    CHECK(llm_session_step(session, 0, 1, 1, wrong, past + 1, 1, &zero, logits, &error) ==
          LLM_NO_ROOM);
    CHECK(llm_session_step(session, 0, 1, 1, wrong + 1, &zero, 1, &zero, logits, &error) ==
          LLM_INVALID_ARGUMENT);
    CHECK(llm_session_step(session, 0, 1, 1, wrong, &zero, 1, past, logits, &error) ==
          LLM_INVALID_ARGUMENT);
    CHECK(llm_tokenize(model, "abcdefgh", 8, true, ids, 4, &count, &error) == LLM_NO_ROOM);
    CHECK(llm_detokenize(model, prompt, 8, text, 4, &count, &error) == LLM_NO_ROOM);
    llm_session_free(session);
    llm_model_close(model);
}

int main(int count, char **arguments) {
    if (count < 3)
        return 2;
    bundle = arguments[1];
    onnxruntime = arguments[2];
    kernels = count > 3 ? arguments[3] : "";
    check_that_nothing_is_allocated_after_opening();
    check_that_failing_allocations_are_statuses();
    check_that_threads_share_a_model();
    check_that_rolling_back_forgets();
    check_wrong_options();
    check_wrong_arguments();
    return 0;
}
