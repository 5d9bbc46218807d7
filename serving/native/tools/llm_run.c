/* llm-run: text from a bundle, at the command line. */
#include "llm_runtime.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

static const char usage[] =
    "Usage: llm-run [OPTIONS] BUNDLE\n\nGenerate text from a bundle of export-llm.\n\n"
    "  -p, --prompt TEXT         Generate behind this text.\n"
    "      --ids 1,2,3           Generate behind these token ids.\n"
    "      --chat                Answer each line of the standard input, as one conversation.\n"
    "      --bench               Measure a prompt of 128 tokens and 128 tokens behind it.\n"
    "      --template TEXT       What a line of a chat is put into, in place of {}. [default: the\n"
    "                            line and its end]\n"
    "  -n, --max-new-tokens N    [default: 128]\n"
    "      --temperature X       0 takes the likeliest token. [default: 0]\n"
    "      --top-k N  --top-p X  --min-p X  --repetition-penalty X\n"
    "      --seed N              Make sampling repeatable.\n"
    "      --ignore-eos          Go on after end tokens.\n"
    "      --capacity N          Tokens of prompt and text together. [default: up to 4096]\n"
    "      --chunk N             Tokens of a prompt that run at once. [default: 192]\n"
    "      --threads N           [default: the physical cores]\n"
    "      --provider NAME       cpu, cuda or tensorrt-rtx. [default: cpu]\n"
    "      --onnxruntime FILE    libonnxruntime.so [default: $LLM_ONNXRUNTIME_LIBRARY, or found]\n"
    "      --kernels FILE        Kernels for the CPU; '': ONNX Runtime's. [default: found]\n"
    "      --no-verify           Don't compare the files' checksums.\n"
    "      --json                Print one JSON object a text.\n"
    "      --help, --version\n";

typedef struct {
    const char *bundle, *prompt, *ids, *template, *seed;
    bool chat, bench, json;
    llm_model_options model;
    llm_session_options session;
    llm_sampling sampling;
    llm_generation generation;
} Command;

typedef struct {
    const Command *command;
    double begin, first; /* seconds */
} Printer;

static int fail_with(const char *message) {
    fprintf(stderr, "llm-run: %s\n", message);
    return 1;
}

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
}

static long peak_kilobytes(void) {
    struct rusage usage_of_self;
    getrusage(RUSAGE_SELF, &usage_of_self);
    return usage_of_self.ru_maxrss;
}

/* Print a part of a JSON string. */
static void print_escaped(const char *text, size_t length) {
    for (size_t i = 0; i < length; i++) {
        const unsigned char byte = (unsigned char)text[i];
        if (byte == '"' || byte == '\\')
            printf("\\%c", byte);
        else if (byte < 0x20)
            printf("\\u%04x", byte);
        else
            putchar(byte);
    }
}

static bool on_piece(const llm_piece *piece, void *user_data) {
    Printer *const printer = user_data;
    const Command *const command = printer->command;
    if (printer->first == 0) {
        printer->first = now();
        if (command->json)
            printf("{\"text\": \"");
    }
    if (command->json)
        print_escaped(piece->text, piece->length);
    else if (!command->bench)
        fwrite(piece->text, 1, piece->length, stdout);
    return command->json || fflush(stdout) == 0;
}

static void print_json_end(const llm_session *session, const Printer *printer,
                           const llm_generated *made) {
    static const char *const reasons[] = {"", "stop", "length", "stopped"};
    const double end = now();
    size_t count;
    const llm_token *const ids = llm_session_tokens(session, &count);
    printf("\", \"token_ids\": [");
    for (size_t i = count - made->new_tokens; i < count; i++)
        printf(i + 1 < count ? "%lld, " : "%lld", (long long)ids[i]);
    printf("], \"finish_reason\": \"%s\", \"prompt_tokens\": %zu, ", reasons[made->finish],
           made->prompt_tokens);
    printf("\"first_token_seconds\": %.6f, \"decode_seconds\": %.6f, ",
           printer->first - printer->begin, end - printer->first);
    printf("\"peak_memory_bytes\": %lld}\n", peak_kilobytes() * 1024LL);
}

static void print_speed(const Printer *printer, const llm_generated *made) {
    const double prefill = printer->first - printer->begin, decode = now() - printer->first;
    printf("prompt     %8.1f tokens/s  (%zu tokens, %.4f s)\n",
           (double)made->prompt_tokens / prefill, made->prompt_tokens, prefill);
    printf("decode     %8.1f tokens/s\n", (double)(made->new_tokens - 1) / decode);
    printf("peak       %8.1f MB\n", (double)peak_kilobytes() / 1024);
}

static int generate(llm_session *session, const Command *command) {
    llm_error error;
    llm_generated made;
    Printer printer = {.command = command, .begin = now()};
    llm_generation generation = command->generation;
    generation.sampling = &command->sampling;
    generation.on_piece = on_piece;
    generation.user_data = &printer;
    if (llm_generate(session, &generation, &made, &error) != LLM_OK)
        return fail_with(error.message);
    if (command->json)
        print_json_end(session, &printer, &made);
    else if (command->bench)
        print_speed(&printer, &made);
    else
        putchar('\n');
    return 0;
}

static int generate_from_ids(llm_session *session, Command *command) {
    size_t count = 0;
    llm_token *const ids = calloc(strlen(command->ids) + 1, sizeof *ids);
    if (!ids)
        return fail_with("There is no memory for the prompt.");
    for (char *next = (char *)command->ids; *next; next += *next == ',')
        ids[count++] = strtoll(next, &next, 10);
    command->generation.prompt = ids;
    command->generation.prompt_count = count;
    const int result = generate(session, command);
    free(ids);
    return result;
}

static int bench(llm_session *session, Command *command) {
    llm_token ids[128];
    for (size_t i = 0; i < 128; i++)
        ids[i] = i * 7 % 32;
    command->generation.prompt = ids;
    command->generation.prompt_count = llm_session_capacity(session) > 256 ? 128 : 32;
    command->generation.ignore_eos = true;
    return generate(session, command);
}

/* `line` in place of the first {} of the template, for the caller to free. */
static char *templated(const char *template, const char *line) {
    const char *const place = strstr(template, "{}"), *const after = place ? place + 2 : "";
    const size_t before = place ? (size_t)(place - template) : strlen(template);
    const size_t size = strlen(template) + strlen(line) + 1;
    char *const text = malloc(size);
    if (text)
        snprintf(text, size, "%.*s%s%s", (int)before, template, place ? line : "", after);
    return text;
}

static int chat(llm_session *session, Command *command) {
    char *line = NULL;
    size_t size = 0;
    int result = 0;
    while (result == 0 && getline(&line, &size, stdin) > 0) {
        line[strcspn(line, "\n")] = '\0';
        char *const text = templated(command->template, line);
        command->generation.prompt_text = text;
        result = text ? generate(session, command) : 1;
        fflush(stdout);
        free(text);
    }
    free(line);
    return result;
}

static int run(llm_session *session, Command *command) {
    command->generation.prompt_text = command->prompt;
    if (command->chat)
        return chat(session, command);
    if (command->bench)
        return bench(session, command);
    return command->ids ? generate_from_ids(session, command) : generate(session, command);
}

typedef enum { FLAG, TEXT, SIZE, NUMBER } Kind;

static const struct {
    const char *name;
    Kind kind;
    size_t field;
} options[] = {
    {"--prompt", TEXT, offsetof(Command, prompt)},
    {"-p", TEXT, offsetof(Command, prompt)},
    {"--ids", TEXT, offsetof(Command, ids)},
    {"--chat", FLAG, offsetof(Command, chat)},
    {"--bench", FLAG, offsetof(Command, bench)},
    {"--template", TEXT, offsetof(Command, template)},
    {"--max-new-tokens", SIZE, offsetof(Command, generation.max_new_tokens)},
    {"-n", SIZE, offsetof(Command, generation.max_new_tokens)},
    {"--temperature", NUMBER, offsetof(Command, sampling.temperature)},
    {"--top-k", SIZE, offsetof(Command, sampling.top_k)},
    {"--top-p", NUMBER, offsetof(Command, sampling.top_p)},
    {"--min-p", NUMBER, offsetof(Command, sampling.min_p)},
    {"--repetition-penalty", NUMBER, offsetof(Command, sampling.repetition_penalty)},
    {"--seed", TEXT, offsetof(Command, seed)},
    {"--ignore-eos", FLAG, offsetof(Command, generation.ignore_eos)},
    {"--capacity", SIZE, offsetof(Command, session.capacity)},
    {"--chunk", SIZE, offsetof(Command, session.chunk)},
    {"--threads", SIZE, offsetof(Command, model.threads)},
    {"--provider", TEXT, offsetof(Command, model.provider)},
    {"--onnxruntime", TEXT, offsetof(Command, model.onnxruntime)},
    {"--kernels", TEXT, offsetof(Command, model.kernels)},
    {"--no-verify", FLAG, offsetof(Command, model.skip_checksums)},
    {"--json", FLAG, offsetof(Command, json)},
};

/* Store a value in a field; returns whether it is one. */
static bool store(Kind kind, void *field, const char *value) {
    char *end = "";
    if (kind == FLAG)
        *(bool *)field = true;
    else if (kind == TEXT)
        *(const char **)field = value;
    else if (kind == SIZE)
        *(size_t *)field = strtoull(value, &end, 10);
    else
        *(double *)field = strtod(value, &end);
    return *end == '\0' && end != value && (kind != SIZE || *value != '-');
}

/* Read the option at `at`, and its value; returns whether it is one. */
static bool read_option(Command *command, int count, char **arguments, int *at) {
    for (size_t i = 0; i < sizeof options / sizeof *options; i++) {
        if (strcmp(arguments[*at], options[i].name) != 0)
            continue;
        const bool has_value = options[i].kind != FLAG;
        if (has_value && *at + 1 == count)
            return false;
        *at += has_value;
        return store(options[i].kind, (char *)command + options[i].field, arguments[*at]);
    }
    return false;
}

static int read_command(Command *command, int count, char **arguments) {
    for (int at = 1; at < count; at++) {
        if (arguments[at][0] != '-' && !command->bundle)
            command->bundle = arguments[at];
        else if (!read_option(command, count, arguments, &at))
            return fail_with("there is no such option or value; see llm-run --help.");
    }
    if (!command->bundle)
        return fail_with("give a bundle; see llm-run --help.");
    if (!command->prompt + !command->ids + !command->chat + !command->bench != 3)
        return fail_with("give one of --prompt, --ids, --chat and --bench; see llm-run --help.");
    command->generation.has_seed = command->seed != NULL;
    command->generation.seed = command->seed ? strtoull(command->seed, NULL, 10) : 0;
    return 0;
}

int main(int count, char **arguments) {
    Command command = {
        .template = "{}\n",
        .model.size = sizeof(llm_model_options),
        .session.size = sizeof(llm_session_options),
        .sampling.size = sizeof(llm_sampling),
        .generation = {.size = sizeof(llm_generation), .max_new_tokens = 128},
    };
    if (count == 2 && strcmp(arguments[1], "--help") == 0)
        return fputs(usage, stdout) < 0;
    if (count == 2 && strcmp(arguments[1], "--version") == 0)
        return printf("llm-run %s\n", llm_version()) < 0;
    if (read_command(&command, count, arguments) != 0)
        return 2;
    llm_error error;
    llm_model *model;
    llm_session *session;
    if (llm_model_open(command.bundle, &command.model, &model, &error) != LLM_OK)
        return fail_with(error.message);
    int result = 1;
    if (llm_session_create(model, &command.session, &session, &error) != LLM_OK) {
        fail_with(error.message);
    } else {
        result = run(session, &command);
        llm_session_free(session);
    }
    llm_model_close(model);
    return result;
}
