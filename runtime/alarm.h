/* A descriptor that rings at a moment: how a wait gets a limit where the waiting call itself takes none that
 * is fine enough. */
#ifndef COIL__ALARM_H
#define COIL__ALARM_H

#include "driver.h"

#include <sys/timerfd.h>

struct coil__alarm {
    int fd;
    int64_t set_ns; /* COIL__NEVER: it has rung */
};

/* 0 or negative errno. */
static inline int coil__alarm_open(struct coil__alarm *a) {
    a->set_ns = COIL__NEVER;
    a->fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    return a->fd < 0 ? -errno : 0;
}

/* It is only moved when it would ring too late: an early ring is one needless turn, moving it is a system
 * call. */
static inline void coil__alarm_set(struct coil__alarm *a, int64_t until_ns) {
    if (a->fd < 0 || until_ns == COIL__NEVER || until_ns >= a->set_ns) return;
    struct itimerspec at = {.it_value = {.tv_sec = until_ns / 1000000000, .tv_nsec = until_ns % 1000000000}};
    CHECK(timerfd_settime(a->fd, TFD_TIMER_ABSTIME, &at, NULL) == 0);
    a->set_ns = until_ns;
}

static inline void coil__alarm_rang(struct coil__alarm *a) {
    a->set_ns = COIL__NEVER;
}

#endif
