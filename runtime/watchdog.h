/* Tells of tasks that keep their worker for too long: one thread for the process, while anybody asks. */
#ifndef COIL__WATCHDOG_H
#define COIL__WATCHDOG_H

#include "worker.h"

#include <pthread.h>
#include <semaphore.h>

enum { COIL__WATCH_FRAMES = 64 };

/* One worker that is watched. */
struct coil__watch {
    struct coil__node node; /* in the list of all */
    struct coil__worker *w; /* NULL: it is not watched */
    pthread_t thread;
    int64_t limit_ns;

    /* The watchdog's own. */
    uint64_t resumes; /* the worker's, when it was looked at last */
    int64_t since_ns; /* since when that number has not changed ... */
    int64_t held_ns;  /* ... and how much of that time counts */
    bool asked;       /* once for this resume */
    bool reported;

    /* What the worker's thread is asked, and what it answers from its signal handler. */
    atomic_int question;
    atomic_int owed; /* signals that were sent and have not come yet */
    sem_t answered;
    struct {
        bool in_task;
        char name[32];
        coil_fn *fn;
        int count;
        void *pc[COIL__WATCH_FRAMES];
    } answer;
};

/* From here to leave, the calling worker is watched. 0; -EAGAIN: there is no thread to be had. */
int coil__watchdog_join(struct coil__watch *watch, struct coil__worker *w, int64_t limit_ns);
/* Harmless where it has not joined. */
void coil__watchdog_leave(struct coil__watch *watch);

#endif
