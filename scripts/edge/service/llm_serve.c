/* llm-serve BUNDLE CONTEXT [SOCKET]: a prompt, maybe with options (request.h), comes in over a
 * connection and ends where the client shuts its side down; the text that follows goes out as it is
 * generated, and the connection ends with it. One at a time; others wait. The listening socket is
 * systemd's, or made at SOCKET.
 *
 * All memory is allocated at the start. What goes wrong with one connection ends that one. */
#define _GNU_SOURCE
#include "activation.h"
#include "request.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    chunk = 64,           /* Tokens of a prompt between two signs of life. */
    bytes_per_token = 16, /* Longer prompts are refused unread. */
    patience = 30,        /* Seconds for a client that neither sends nor reads. */
};

typedef struct service {
    llm_model *model;
    llm_session *session;
    llm_token *ids; /* [context] */
    size_t context;
    char *text; /* [context * bytes_per_token], what a client sent */
} service;

static volatile sig_atomic_t is_stopping;

static void stop(int number) {
    (void)number;
    is_stopping = 1;
}

static int complain(const char *what) {
    fprintf(stderr, "%s\n", what);
    return 1;
}

/* Read until the client has sent all; returns how many bytes, or -1 if they don't come or don't fit
 * with the 0 behind them. */
static ssize_t read_text(service *self, int connection) {
    size_t capacity = self->context * bytes_per_token, length = 0;
    while (length < capacity) {
        ssize_t count = recv(connection, self->text + length, capacity - length, 0);
        if (count == 0) {
            self->text[length] = 0;
            return (ssize_t)length;
        }
        if (count < 0 && errno != EINTR)
            return -1;
        length += count > 0 ? (size_t)count : 0;
    }
    return -1;
}

static bool send_piece(const llm_piece *piece, void *user_data) {
    int connection = *(int *)user_data;
    keep_alive();
    for (size_t sent = 0; sent < piece->length;) {
        ssize_t count = send(connection, piece->text + sent, piece->length - sent, MSG_NOSIGNAL);
        if (count < 0 && errno != EINTR)
            return false;
        sent += count > 0 ? (size_t)count : 0;
    }
    return true;
}

static llm_status answer(service *self, int connection, llm_error *error) {
    ssize_t length = read_text(self, connection);
    size_t count, done = 0;
    if (length < 0) {
        strcpy(error->message, "A prompt was too long, or didn't come.");
        return LLM_NO_ROOM;
    }
    request asked;
    if (!request_read(self->text, (size_t)length, &asked)) {
        strcpy(error->message, "A prompt's line of options has something else in it.");
        return LLM_INVALID_ARGUMENT;
    }
    llm_status status = llm_rollback(self->session, 0, error);
    if (!status)
        status = llm_tokenize(self->model, asked.prompt, asked.length, true, self->ids,
                              self->context, &count, error);
    for (; !status && done + chunk < count; done += chunk) {
        status = llm_prefill(self->session, self->ids + done, chunk, error);
        keep_alive();
    }
    if (status)
        return status;
    asked.generation.prompt = self->ids + done;
    asked.generation.prompt_count = count - done;
    asked.generation.sampling = &asked.sampling;
    asked.generation.on_piece = send_piece;
    asked.generation.user_data = &connection;
    return llm_generate(self->session, &asked.generation, NULL, error);
}

static void serve(service *self, int listener) {
    int connection = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    if (connection < 0)
        return;
    struct timeval limit = {.tv_sec = patience};
    setsockopt(connection, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    setsockopt(connection, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
    llm_error error;
    if (answer(self, connection, &error))
        complain(error.message);
    close(connection);
}

/* Answer connections until a signal; the one that has begun is finished. */
static void run(service *self, int listener) {
    struct pollfd incoming = {.fd = listener, .events = POLLIN};
    int interval = watchdog_interval();
    struct timespec wait = {.tv_sec = interval / 1000, .tv_nsec = interval % 1000 * 1000000L};
    sigset_t while_waiting, otherwise;
    sigemptyset(&otherwise);
    sigaddset(&otherwise, SIGTERM);
    sigaddset(&otherwise, SIGINT);
    sigprocmask(SIG_BLOCK, &otherwise, &while_waiting);
    struct sigaction stopping = {.sa_handler = stop};
    sigaction(SIGTERM, &stopping, NULL);
    sigaction(SIGINT, &stopping, NULL);
    notify("READY=1");
    while (!is_stopping) {
        int ready = ppoll(&incoming, 1, interval < 0 ? NULL : &wait, &while_waiting);
        keep_alive();
        if (ready > 0)
            serve(self, listener);
    }
    notify("STOPPING=1");
}

static llm_status open_service(service *self, const char *bundle, llm_error *error) {
    llm_session_options options = {
        .size = sizeof options, .capacity = self->context, .chunk = chunk};
    self->ids = malloc(self->context * sizeof *self->ids);
    self->text = malloc(self->context * bytes_per_token);
    if (!self->ids || !self->text) {
        strcpy(error->message, "There is too little memory for a prompt.");
        return LLM_OUT_OF_MEMORY;
    }
    llm_status status = llm_model_open(bundle, NULL, &self->model, error);
    if (!status)
        status = llm_session_create(self->model, &options, &self->session, error);
    return status;
}

int main(int count, char **arguments) {
    llm_error error;
    service self = {0};
    if (count < 3 || !(self.context = strtoul(arguments[2], NULL, 10)))
        return complain("usage: llm-serve BUNDLE CONTEXT [SOCKET]");
    int listener = count > 3 ? listening_socket(arguments[3]) : activated_socket();
    if (listener < 0)
        return complain("There is no socket to listen on: give the path of one, or let systemd.");
    llm_status status = open_service(&self, arguments[1], &error);
    if (status)
        complain(error.message);
    else
        run(&self, listener);
    llm_session_free(self.session);
    llm_model_close(self.model);
    free(self.ids);
    free(self.text);
    return status != LLM_OK;
}
