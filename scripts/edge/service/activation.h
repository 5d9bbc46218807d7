/* What systemd gives a service, and wants of it (sd_listen_fds(3), sd_notify(3)), without its
 * library. */
#ifndef ACTIVATION_H
#define ACTIVATION_H

/* The socket that systemd listens on for this process, or -1. */
int activated_socket(void);

/* A new Unix socket at `path`, in place of one that an earlier process left; only its owner may
 * connect. -1 with errno set if that fails. */
int listening_socket(const char *path);

/* Tell systemd of a state: "READY=1" or "STOPPING=1". Does nothing without systemd. */
void notify(const char *state);

/* In how many milliseconds the next sign of life is due, or -1 if nobody waits for one. */
int watchdog_interval(void);

/* A sign of life, if one is due. It never waits. */
void keep_alive(void);

#endif
