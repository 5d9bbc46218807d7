#include "activation.h"

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

static const int first_activated = 3; /* SD_LISTEN_FDS_START */
static const int backlog = 16;

static long number_in(const char *variable) {
    const char *text = getenv(variable);
    return text ? strtol(text, NULL, 10) : 0;
}

/* Fill in an address; returns its length, or 0 if the path is too long. */
static socklen_t unix_address(const char *path, struct sockaddr_un *address) {
    size_t length = strlen(path);
    if (length == 0 || length >= sizeof address->sun_path)
        return 0;
    memset(address, 0, sizeof *address);
    address->sun_family = AF_UNIX;
    memcpy(address->sun_path, path, length);
    return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + length);
}

int activated_socket(void) {
    return number_in("LISTEN_PID") == getpid() && number_in("LISTEN_FDS") == 1 ? first_activated
                                                                               : -1;
}

int listening_socket(const char *path) {
    struct sockaddr_un address;
    socklen_t length = unix_address(path, &address);
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (listener < 0)
        return -1;
    unlink(path);
    mode_t before = umask(0177);
    int failed = bind(listener, (struct sockaddr *)&address, length) || listen(listener, backlog);
    umask(before);
    if (!failed)
        return listener;
    close(listener);
    return -1;
}

static void send_state(const char *state, int flags) {
    const char *path = getenv("NOTIFY_SOCKET");
    struct sockaddr_un address;
    socklen_t length = path ? unix_address(path, &address) : 0;
    if (!length)
        return;
    if (address.sun_path[0] == '@') /* in the abstract namespace */
        address.sun_path[0] = 0;
    int sender = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (sender < 0)
        return;
    sendto(sender, state, strlen(state), flags | MSG_NOSIGNAL, (struct sockaddr *)&address, length);
    close(sender);
}

void notify(const char *state) { send_state(state, 0); }

int watchdog_interval(void) {
    long microseconds = number_in("WATCHDOG_USEC");
    /* A quarter: a sign that is a moment early is left out, and the next comes in time. */
    return microseconds > 0 ? (int)(microseconds / 4000) : -1;
}

static int64_t milliseconds(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * INT64_C(1000) + time.tv_nsec / 1000000;
}

void keep_alive(void) {
    static int64_t last;
    int64_t now = milliseconds();
    int interval = watchdog_interval();
    if (interval < 0 || now - last < interval)
        return;
    last = now;
    send_state("WATCHDOG=1", MSG_DONTWAIT);
}
