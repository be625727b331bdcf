/* The blocking pool: one for the process, because what it protects against (a slow disk, a slow name server)
 * is shared by the whole process too.
 *
 * Jobs stand in lanes, one for each kind of work. The threads serve the lanes in turn, and no lane may have
 * all of them: a directory of dead NFS files leaves a thread for names. A thread is started when a job comes
 * and none is idle, and ends after some seconds without work, so that a program that needs none has none. */
#include "threads.h"

#include <pthread.h>
#include <signal.h>
#include <time.h>

enum { THREADS_MAX = 16, QUEUE_MAX = 4096 };

#define IDLE_NS INT64_C(10000000000)

struct lane {
    struct coil__list queue;
    unsigned queued, running;
};

static struct {
    pthread_mutex_t lock;
    pthread_cond_t more; /* a job has come */
    struct lane lanes[COIL__LANE_COUNT];
    unsigned threads, idle, threads_max, queue_max;
    unsigned turn; /* the lane that is looked at first */
    int64_t idle_ns;
} pool = {.lock = PTHREAD_MUTEX_INITIALIZER,
          .threads_max = THREADS_MAX,
          .queue_max = QUEUE_MAX,
          .idle_ns = IDLE_NS};

/* ---- forks: a child has this memory, but none of the threads, of which one may have had the lock ---- */

static void forget_all(void) {
    for (unsigned i = 0; i < COIL__LANE_COUNT; i++) {
        coil__list_init(&pool.lanes[i].queue);
        pool.lanes[i].queued = pool.lanes[i].running = 0;
    }
    pool.threads = pool.idle = 0;
}

static void make_condition(void) {
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&pool.more, &attr);
    pthread_condattr_destroy(&attr);
}

static void in_child(void) {
    pthread_mutex_init(&pool.lock, NULL);
    make_condition();
    forget_all();
}

static void begin(void) {
    make_condition();
    forget_all();
    pthread_atfork(NULL, NULL, in_child);
}

static pthread_once_t begun = PTHREAD_ONCE_INIT;

void coil__threads_limits(unsigned threads_max, unsigned queue_max, int64_t idle_ns) {
    pthread_mutex_lock(&pool.lock);
    if (threads_max) pool.threads_max = MAX(threads_max, (unsigned)COIL__LANE_COUNT);
    if (queue_max) pool.queue_max = queue_max;
    if (idle_ns) pool.idle_ns = idle_ns;
    pthread_mutex_unlock(&pool.lock);
}

/* ---- a thread ---- */

/* How many more threads a lane may have now: one stays free for each other lane that has none. A lane that
 * has none itself may have one, also where more jobs run than a limit that was lowered meanwhile would allow.
 */
static unsigned lane_room(const struct lane *l) {
    unsigned spoken_for = 0;
    for (const struct lane *o = pool.lanes; o < pool.lanes + COIL__LANE_COUNT; o++)
        spoken_for += o == l ? o->running : MAX(o->running, 1u);
    unsigned room = pool.threads_max - MIN(spoken_for, pool.threads_max);
    return l->running == 0 ? MAX(room, 1u) : room;
}

/* Whether no thread will look for jobs before one of those at work has ended, which may be never: only where
 * the limit was lowered while they began. */
static bool all_are_at_work(void) {
    unsigned running = 0;
    for (unsigned i = 0; i < COIL__LANE_COUNT; i++)
        running += pool.lanes[i].running;
    return running >= pool.threads;
}

static struct lane *next_lane(void) {
    for (unsigned i = 0; i < COIL__LANE_COUNT; i++) {
        struct lane *l = &pool.lanes[(pool.turn + i) % COIL__LANE_COUNT];
        if (l->queued && lane_room(l)) return l;
    }
    return NULL;
}

static void run_one(struct lane *l) {
    struct coil__job *j = CONTAINER_OF(coil__list_pop(&l->queue), struct coil__job, node);
    l->queued--;
    l->running++;
    pool.turn = (unsigned)(l - pool.lanes) + 1;
    pthread_mutex_unlock(&pool.lock);
    j->begun_ns = coil__sys_linux.now();
    j->run(j);
    j->ended(j);
    pthread_mutex_lock(&pool.lock);
    l->running--;
}

/* Waits for a job; false: long enough. */
static bool wait_idle(void) {
    int64_t until_ns = coil__sys_linux.now() + pool.idle_ns;
    struct timespec until = {.tv_sec = until_ns / 1000000000, .tv_nsec = until_ns % 1000000000};
    pool.idle++;
    int err = pthread_cond_timedwait(&pool.more, &pool.lock, &until);
    pool.idle--;
    return err == 0 || next_lane();
}

static void *serve(void *arg) {
    (void)arg;
    pthread_mutex_lock(&pool.lock);
    do {
        for (struct lane *l; (l = next_lane());)
            run_one(l);
    } while (wait_idle());
    pool.threads--;
    pthread_mutex_unlock(&pool.lock);
    return NULL;
}

/* Signals are for the program's own threads. */
static int start_thread(void) {
    pthread_t thread;
    pthread_attr_t attr;
    sigset_t all, old;
    sigfillset(&all);
    pthread_attr_init(&attr);
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int err = pthread_create(&thread, &attr, serve, NULL);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    pthread_attr_destroy(&attr);
    if (!err) pool.threads++;
    return err;
}

/* ---- jobs ---- */

/* Whether a thread is there for one more job of that lane. An idle one may have been woken for a job of
 * another lane, and be held up by it for ever, so those are counted too. */
static bool thread_for(const struct lane *l) {
    unsigned promised = 0;
    for (unsigned i = 0; i < COIL__LANE_COUNT; i++)
        promised += MIN(pool.lanes[i].queued, lane_room(&pool.lanes[i]));
    return l->queued >= lane_room(l) || pool.idle > promised;
}

static int queue(struct coil__job *j) {
    struct lane *l = &pool.lanes[j->lane];
    if (l->queued >= pool.queue_max) return -EAGAIN;
    /* Where no further thread can be had, those that are there will come to it. */
    bool enough = pool.threads >= pool.threads_max && (l->running || !all_are_at_work());
    bool helped = thread_for(l) || enough || start_thread() == 0;
    if (!helped && pool.threads == 0) return -ENOMEM;
    j->queued_ns = coil__sys_linux.now();
    coil__list_push(&l->queue, &j->node);
    l->queued++;
    pthread_cond_signal(&pool.more);
    return 0;
}

int coil__threads_hand_over(struct coil__job *j) {
    CHECK(j->lane < COIL__LANE_COUNT);
    pthread_once(&begun, begin);
    pthread_mutex_lock(&pool.lock);
    int err = queue(j);
    pthread_mutex_unlock(&pool.lock);
    return err;
}

bool coil__threads_take_back(struct coil__job *j) {
    pthread_mutex_lock(&pool.lock);
    bool waits = coil__node_linked(&j->node);
    if (waits) {
        coil__node_unlink(&j->node);
        pool.lanes[j->lane].queued--;
    }
    pthread_mutex_unlock(&pool.lock);
    return waits;
}
