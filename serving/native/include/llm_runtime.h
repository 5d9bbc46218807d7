/* llm_runtime: text from a bundle of export-llm, over ONNX Runtime's C API alone.
 *
 *     llm_model *model;
 *     llm_session *session;
 *     llm_model_open("bundle", NULL, &model, &error);
 *     llm_session_create(model, NULL, &session, &error);
 *     llm_generate(session, &(llm_generation){.size = sizeof(llm_generation), ...}, NULL, &error);
 *     llm_session_free(session);
 *     llm_model_close(model);
 *
 * Threads. A model never changes once it is open, and any number of threads may use it at a time. A
 * session belongs to one thread at a time; sessions don't know of each other. There is no global
 * state: errors are written where the caller says.
 *
 * Memory. The library's memory is allocated by llm_model_open and llm_session_create, with the
 * allocator of the model's options: no step allocates, but in ONNX Runtime itself. Texts are the
 * exception: tokenizing one, or an unusually long piece of one, may take more.
 *
 * Versions. A structure that a caller fills begins with its `size`, so that fields can be added at
 * its end. Every field may be left 0 and then has the default that it documents. Functions and
 * status codes are only ever added within a major version.
 */
#ifndef LLM_RUNTIME_H
#define LLM_RUNTIME_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define LLM_VERSION_MAJOR 1
#define LLM_VERSION_MINOR 0

#if defined(_WIN32)
#define LLM_API
#else
#define LLM_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef enum llm_status {
    LLM_OK = 0,
    LLM_INVALID_ARGUMENT = 1, /* A parameter is out of its range. */
    LLM_NOT_FOUND = 2,        /* There is no such file, or ONNX Runtime's library isn't found. */
    LLM_NOT_A_BUNDLE = 3,     /* A directory or manifest that export-llm didn't write so. */
    LLM_DAMAGED = 4,          /* A file isn't the one that the manifest describes. */
    LLM_UNSUPPORTED = 5,      /* A bundle or provider that this library doesn't run. */
    LLM_OUT_OF_MEMORY = 6,
    LLM_NO_ROOM = 7,       /* The tokens, or what is written, don't fit. */
    LLM_ENGINE_FAILED = 8, /* ONNX Runtime refused or failed; the message is its own. */
    LLM_NOT_A_NUMBER = 9,  /* The engine returned NaN or infinity: its precision overflows. */
} llm_status;

/* What went wrong, in a sentence. Functions take a pointer to one, which may be NULL, and write it
 * only when they fail. */
typedef struct llm_error {
    char message[512];
} llm_error;

typedef struct llm_model llm_model;
typedef struct llm_session llm_session;
typedef int64_t llm_token;

/* The library's version, "major.minor", which may be newer than this header's. */
LLM_API const char *llm_version(void);

/* ---------------------------------------------------------------------------------- models -- */

/* Where memory comes from: `allocate` returns zeros, as calloc does, or NULL. Both are called by
 * whichever thread opens, creates, frees or closes. */
typedef struct llm_allocator {
    void *(*allocate)(size_t bytes, void *user_data);
    void (*release)(void *memory, void *user_data);
    void *user_data;
} llm_allocator;

typedef struct llm_model_options {
    size_t size; /* sizeof(llm_model_options) */
    /* ONNX Runtime's library. NULL: LLM_ONNXRUNTIME_LIBRARY in the environment, or else
     * libonnxruntime.so as the system finds it. */
    const char *onnxruntime;
    /* Kernels of export-llm for the CPU. NULL: libllm_kernels.so beside this library, if it is
     * there and EXPORT_LLM_KERNELS in the environment isn't "none"; "": ONNX Runtime's own. */
    const char *kernels;
    /* "cpu" (NULL), "cuda" or "tensorrt-rtx". The last two have not been run on a GPU yet. */
    const char *provider;
    size_t threads;          /* 0: one for each physical core that the process may run on. */
    bool skip_checksums;     /* Compare the files' sizes only. */
    bool prepack;            /* Copy float weights into the kernels' layout: more memory, faster
                              * prefill. */
    bool without_tokenizer;  /* Take and give token ids only. */
    llm_allocator allocator; /* Zeros: calloc and free. */
} llm_model_options;

/* Open the bundle in a directory and check its files. `options` may be NULL. */
LLM_API llm_status llm_model_open(const char *bundle, const llm_model_options *options,
                                  llm_model **model, llm_error *error);

/* Close a model, once its sessions are freed. NULL is fine. */
LLM_API void llm_model_close(llm_model *model);

/* What a bundle is. Strings and arrays live as long as the model. */
typedef struct llm_model_info {
    size_t size; /* sizeof(llm_model_info) */
    const char *name;
    const char *architecture;
    const char *provider;
    size_t vocab_size;
    size_t max_length; /* The most tokens that a session's capacity may have. */
    uint64_t weight_bytes;
    uint64_t kv_bytes_per_token;
    llm_token bos;        /* -1: none. */
    const llm_token *eos; /* Any of them ends a text. */
    size_t eos_count;
    bool has_tokenizer;
    size_t layers;
    const char *onnxruntime_version;
    const char *kernels; /* The file of the kernels in use, or NULL. */
} llm_model_info;

/* Fill in `info`, whose `size` is set. */
LLM_API void llm_model_describe(const llm_model *model, llm_model_info *info);

/* ------------------------------------------------------------------------------------ text -- */

/* Token ids of a UTF-8 text of `length` bytes. `special` adds the tokens that the tokenizer puts
 * around a text. What isn't valid UTF-8 counts as U+FFFD. `count` receives how many there are, also
 * if they are more than `capacity` and the status is LLM_NO_ROOM: a capacity of 0 asks for it. */
LLM_API llm_status llm_tokenize(const llm_model *model, const char *text, size_t length,
                                bool special, llm_token *ids, size_t capacity, size_t *count,
                                llm_error *error);

/* UTF-8 text of token ids without special tokens, ended by a 0 that `length` doesn't count. If it
 * has more than `capacity` bytes, the 0 included, the status is LLM_NO_ROOM. */
LLM_API llm_status llm_detokenize(const llm_model *model, const llm_token *ids, size_t count,
                                  char *text, size_t capacity, size_t *length, llm_error *error);

/* -------------------------------------------------------------------------------- sessions -- */

typedef struct llm_session_options {
    size_t size;     /* sizeof(llm_session_options) */
    size_t capacity; /* Tokens that a row of the KV cache holds. 0: the model's most, up to 4096. */
    size_t rows;     /* Rows of the KV cache, for llm_session_step. 0: 1. */
    size_t chunk;    /* Tokens of a prompt that run at once. 0: 192. */
} llm_session_options;

/* Allocate a text's KV cache and all else that its steps need. `options` may be NULL. The model
 * must outlive the session. */
LLM_API llm_status llm_session_create(const llm_model *model, const llm_session_options *options,
                                      llm_session **session, llm_error *error);

LLM_API void llm_session_free(llm_session *session);

/* The tokens of the text so far, and how many a session has room for. */
LLM_API const llm_token *llm_session_tokens(const llm_session *session, size_t *count);
LLM_API size_t llm_session_capacity(const llm_session *session);

/* Append tokens to the text and run them. All of the text is prompt then: presence and frequency
 * penalties count what comes after. */
LLM_API llm_status llm_prefill(llm_session *session, const llm_token *ids, size_t count,
                               llm_error *error);

/* Append a generated token to the text and run it. */
LLM_API llm_status llm_decode(llm_session *session, llm_token id, llm_error *error);

/* The last token's logits [vocab_size], until the next step. NULL before the first step, and after
 * a rollback. */
LLM_API const float *llm_session_logits(const llm_session *session);

/* Forget the text but its first `length` tokens. Nothing is copied; the last one that stays is run
 * again by the next step. */
LLM_API llm_status llm_rollback(llm_session *session, size_t length, llm_error *error);

/* -------------------------------------------------------------------------------- sampling -- */

/* How a token is chosen; serving.SamplingParameters of the Python runtime has the same fields, and
 * chooses the same tokens of the same logits and seed, bit for bit. */
typedef struct llm_sampling {
    size_t size;               /* sizeof(llm_sampling) */
    double temperature;        /* 0: the likeliest token. */
    size_t top_k;              /* 0: all. */
    double top_p;              /* 0 or 1: all. */
    double min_p;              /* 0: all. */
    double repetition_penalty; /* Of tokens in the text, prompt included. 0 or 1: none. */
    double presence_penalty;   /* Of generated tokens, from -2 to 2. */
    double frequency_penalty;  /* Of generated tokens, for each time, from -2 to 2. */
    const llm_token *bias_ids; /* Tokens whose logits are changed before all else, */
    const float *bias;         /* by these amounts, from -100 to 100. */
    size_t bias_count;
} llm_sampling;

/* Begin the session's random numbers anew. A session that was never seeded took entropy. */
LLM_API void llm_session_seed(llm_session *session, uint64_t seed);

/* Choose the text's next token of the last step's logits. The text stays as it is. `sampling` may
 * be NULL: the likeliest. */
LLM_API llm_status llm_sample(llm_session *session, const llm_sampling *sampling, llm_token *id,
                              llm_error *error);

/* ------------------------------------------------------------------------------ generation -- */

typedef enum llm_finish {
    LLM_RUNNING = 0,
    LLM_FINISH_EOS = 1,
    LLM_FINISH_LENGTH = 2,  /* max_new_tokens, or the capacity. */
    LLM_FINISH_STOPPED = 3, /* The callback's wish. */
} llm_finish;

/* A generated token, and the UTF-8 text that became certain with it: maybe none, never a part of a
 * character, ended by a 0. */
typedef struct llm_piece {
    llm_token id;
    const char *text;
    size_t length;
    llm_finish finish;
} llm_piece;

/* Gets each token; returns whether to go on. `piece` is valid during the call. No exception may
 * leave it. */
typedef bool (*llm_on_piece)(const llm_piece *piece, void *user_data);

typedef struct llm_generation {
    size_t size;             /* sizeof(llm_generation) */
    const llm_token *prompt; /* Appended to the session's text, */
    size_t prompt_count;
    const char *prompt_text; /* or, where this isn't NULL, this UTF-8 text, ended by a 0, with the
                              * tokenizer's special tokens if the session's text is empty. */
    size_t max_new_tokens;   /* 0: until the capacity. */
    size_t min_new_tokens;   /* No EOS token is chosen before. */
    bool ignore_eos;
    const llm_sampling *sampling; /* NULL: the likeliest tokens. */
    bool has_seed;                /* Begin with llm_session_seed(session, seed). */
    uint64_t seed;
    llm_on_piece on_piece; /* NULL: tokens only go to the session's text. */
    void *user_data;
} llm_generation;

typedef struct llm_generated {
    size_t prompt_tokens;
    size_t new_tokens;
    llm_finish finish;
} llm_generated;

/* Run a prompt and generate behind it. The last token that was generated belongs to the text, but
 * has not been run: the next prompt runs it. `generated` may be NULL. */
LLM_API llm_status llm_generate(llm_session *session, const llm_generation *generation,
                                llm_generated *generated, llm_error *error);

/* ----------------------------------------------------------------- steps of several rows -- */

/* For programs that batch texts themselves: run `count` new tokens of each of `rows` rows of the KV
 * cache from `first_row` on. `ids` [rows, count]; `past_lengths` [rows] is where each row's tokens
 * are written; `positions` [rows, picked] says which of the new tokens get logits. More than one
 * token of a row goes a row at a time. `logits` [rows, picked, vocab_size] is the caller's memory.
 * The session's text, which has row 0, knows nothing of it. */
LLM_API llm_status llm_session_step(llm_session *session, size_t first_row, size_t rows,
                                    size_t count, const llm_token *ids, const int64_t *past_lengths,
                                    size_t picked, const int64_t *positions, float *logits,
                                    llm_error *error);

/* The memory of a layer's keys (part 0) or values (part 1), [rows, heads, capacity, dim] of
 * elements of `element_bytes`; NULL if there is no such layer, or it isn't in the CPU's memory. */
LLM_API void *llm_session_cache(llm_session *session, size_t layer, int part, size_t *heads,
                                size_t *dim, size_t *element_bytes);

#ifdef __cplusplus
}
#endif
#endif
