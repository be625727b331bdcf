/* The watchdog looks at each worker's count of resumes every now and then. One that stays the same, while the
 * worker does not sleep in its driver, is a task that keeps the worker; or the worker's loop is at work,
 * which only the worker's own thread can tell. So that thread is asked, by a signal: its handler finds the
 * task and takes the call stack, and the watchdog prints it. The hot path does nothing for this.
 *
 *   question:  NONE -> ASKED by the watchdog -> TAKING by the handler -> NONE, then `answered` is posted;
 *              or ASKED -> NONE by the watchdog, which has waited for long enough.
 *
 * Of the time between two looks no more counts than was to be expected, and what the watchdog itself has
 * worked: a process that was stopped has not been held up by a task meanwhile. */
#include "watchdog.h"
#include "dump.h"
#include "unwind.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

enum { NONE, ASKED, TAKING };
enum {
    SIGNAL = SIGURG, /* by default it does nothing, so that one that comes late is harmless */
    LOOKS = 4,       /* in the time of the limit */
    LOOK_NS_MIN = 1000000,
    ANSWER_S = 1,
    OWN_FRAMES = 2, /* the handler, and what the kernel returns from it by */
    THREAD_STACK = 4 * COIL__SYMBOLS_STACK,
};

static pthread_mutex_t life_lock = PTHREAD_MUTEX_INITIALIZER; /* over beginning and end of the thread */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;      /* over the list, and over what is in it */
static pthread_cond_t changed;
static struct coil__list watches;
static unsigned joined;
static pthread_t watchdog;
static struct sigaction before;
static _Thread_local struct coil__watch *mine __attribute__((tls_model("initial-exec")));

static int64_t now_ns(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* ---- on the worker's thread ---- */

/* Takes part in the count of OWN_FRAMES: it is the handler itself that unwinds. */
static void on_signal(int sig, siginfo_t *info, void *context) {
    int saved = errno, asked = ASKED;
    struct coil__watch *watch = mine;
    if (watch && info->si_code == SI_TKILL && atomic_load(&watch->owed) > 0) {
        atomic_fetch_sub(&watch->owed, 1);
        if (atomic_compare_exchange_strong(&watch->question, &asked, TAKING)) {
            struct coil__sched *s = &watch->w->s;
            struct coil__task *t = s->current;
            watch->answer.in_task = t && t->state == COIL__RUNNING && coil__resumes(s) == watch->resumes;
            if (watch->answer.in_task) {
                memcpy(watch->answer.name, t->name, sizeof t->name);
                if (!t->name[0]) snprintf(watch->answer.name, sizeof t->name, "task %u", t->slot);
                watch->answer.fn = t->fn;
                watch->answer.count = coil__unwind_here(watch->answer.pc, COIL__WATCH_FRAMES);
            }
            atomic_store(&watch->question, NONE);
            sem_post(&watch->answered);
        }
    } else if (before.sa_flags & SA_SIGINFO) {
        before.sa_sigaction(sig, info, context);
    } else if (before.sa_handler != SIG_DFL && before.sa_handler != SIG_IGN) {
        before.sa_handler(sig);
    }
    errno = saved;
}

/* Somebody may have put a handler over ours in the meantime, and will put ours back: it stays good for that.
 */
static bool ours_is_installed(void) {
    struct sigaction now;
    sigaction(SIGNAL, NULL, &now);
    return (now.sa_flags & SA_SIGINFO) && now.sa_sigaction == on_signal;
}

static void install(void) {
    struct sigaction ours = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART};
    sigemptyset(&ours.sa_mask);
    if (ours_is_installed()) return;
    sigaction(SIGNAL, NULL, &before);
    sigaction(SIGNAL, &ours, NULL);
}

static void restore(void) {
    if (ours_is_installed()) sigaction(SIGNAL, &before, NULL);
}

/* ---- on the watchdog's ---- */

/* Whether there is an answer. */
static bool ask(struct coil__watch *watch) {
    struct timespec until;
    int asked = ASKED;
    atomic_store(&watch->question, ASKED);
    atomic_fetch_add(&watch->owed, 1);
    pthread_kill(watch->thread, SIGNAL);
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += ANSWER_S;
    while (sem_timedwait(&watch->answered, &until) != 0) {
        if (errno == EINTR) continue;
        if (atomic_compare_exchange_strong(&watch->question, &asked, NONE)) return false;
        while (sem_wait(&watch->answered) != 0) {
        }
        break;
    }
    return true;
}

static void print_stack(const struct coil__watch *watch) {
    int number = 0, count = MIN(watch->answer.count, COIL__WATCH_FRAMES);
    struct coil__symbols *symbols = coil__symbols_open();
    const struct coil__symbol *sym;
    coil__symbols_find(symbols, (const char *)(uintptr_t)watch->answer.fn + 1, &sym);
    if (!sym->ours) {
        fputs("coil: it was spawned with ", stderr);
        coil__symbol_print(stderr, sym);
        fputc('\n', stderr);
    }
    if (count > OWN_FRAMES)
        coil__dump_frames(stderr, symbols, watch->answer.pc + OWN_FRAMES, count - OWN_FRAMES,
                          watch->answer.count - OWN_FRAMES, true, "  ", &number);
    coil__symbols_close(symbols);
}

static void report(struct coil__watch *watch) {
    bool answered = ask(watch);
    if (answered && !watch->answer.in_task) {
        watch->asked = false; /* it may be one again later, without a resume in between: after a dump */
        watch->held_ns = 0;
        return;
    }
    watch->reported = true;
    if (!answered) snprintf(watch->answer.name, sizeof watch->answer.name, "a task");
    fprintf(stderr, "coil: %s has kept worker %u for ", watch->answer.name, watch->w->s.worker);
    coil__print_ns(stderr, watch->held_ns);
    if (answered) {
        fputs(" so far:\n", stderr);
        print_stack(watch);
    } else {
        fputs(" so far; it does not let SIGURG in, so its call stack is not known\n", stderr);
    }
}

static void say_given_up(const struct coil__watch *watch) {
    if (!watch->reported) return;
    fprintf(stderr, "coil: %s has given worker %u up after about ", watch->answer.name, watch->w->s.worker);
    coil__print_ns(stderr, now_ns(CLOCK_MONOTONIC) - watch->since_ns);
    fputc('\n', stderr);
}

static void look(struct coil__watch *watch, int64_t passed_ns) {
    struct coil__worker *w = watch->w;
    uint64_t resumes = coil__resumes_seen(&w->s);
    if (resumes != watch->resumes || atomic_load_explicit(&w->sleeping, memory_order_relaxed)) {
        say_given_up(watch);
        watch->resumes = resumes;
        watch->since_ns = now_ns(CLOCK_MONOTONIC);
        watch->held_ns = 0;
        watch->asked = watch->reported = false;
        return;
    }
    watch->held_ns += passed_ns;
    if (watch->asked || watch->held_ns <= watch->limit_ns) return;
    watch->asked = true;
    report(watch);
}

static int64_t look_after_ns(void) {
    int64_t least = COIL__NEVER;
    LIST_EACH(n, &watches) {
        least = MIN(least, CONTAINER_OF(n, struct coil__watch, node)->limit_ns / LOOKS);
    }
    /* A year, so that the moment can be told in a timespec. */
    return MIN(MAX(least, LOOK_NS_MIN), INT64_C(31536000000000000));
}

/* The time from one look to the next, as far as it counts: a process that stands still uses no processor. */
static int64_t credible_ns(int64_t passed_ns, int64_t after_ns, int64_t cpu_ns) {
    return MIN(passed_ns, after_ns + after_ns / 2 + cpu_ns);
}

static void *watch_all(void *arg) {
    int64_t looked_ns = now_ns(CLOCK_MONOTONIC), cpu_ns = now_ns(CLOCK_THREAD_CPUTIME_ID);
    pthread_mutex_lock(&lock);
    while (!coil__list_empty(&watches)) {
        int64_t after_ns = look_after_ns(), at_ns = looked_ns + after_ns;
        struct timespec at = {.tv_sec = at_ns / 1000000000, .tv_nsec = at_ns % 1000000000};
        pthread_cond_timedwait(&changed, &lock, &at);
        int64_t time_ns = now_ns(CLOCK_MONOTONIC), used_ns = now_ns(CLOCK_THREAD_CPUTIME_ID);
        if (time_ns < at_ns) continue;
        int64_t counts_ns = credible_ns(time_ns - looked_ns, after_ns, used_ns - cpu_ns);
        looked_ns = time_ns;
        cpu_ns = used_ns;
        LIST_EACH(n, &watches) {
            look(CONTAINER_OF(n, struct coil__watch, node), counts_ns);
        }
    }
    pthread_mutex_unlock(&lock);
    return arg;
}

/* ---- beginning and end ---- */

static int start_thread(void) {
    sigset_t all, old;
    pthread_attr_t attr;
    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, THREAD_STACK);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int err = pthread_create(&watchdog, &attr, watch_all, NULL);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    pthread_attr_destroy(&attr);
    return -err;
}

static void init(void) {
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&changed, &attr);
    pthread_condattr_destroy(&attr);
    coil__list_init(&watches);
}

static void add(struct coil__watch *watch) {
    pthread_mutex_lock(&lock);
    coil__list_push(&watches, &watch->node);
    pthread_cond_signal(&changed);
    pthread_mutex_unlock(&lock);
}

static void take_out(struct coil__watch *watch) {
    pthread_mutex_lock(&lock);
    coil__node_unlink(&watch->node);
    say_given_up(watch);
    pthread_cond_signal(&changed);
    pthread_mutex_unlock(&lock);
    mine = NULL;
    watch->w = NULL;
    sem_destroy(&watch->answered);
}

int coil__watchdog_join(struct coil__watch *watch, struct coil__worker *w, int64_t limit_ns) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    int err = 0;
    pthread_once(&once, init);
    watch->w = w;
    watch->thread = pthread_self();
    watch->limit_ns = limit_ns;
    sem_init(&watch->answered, 0, 0);
    /* The first time it loads and allocates, which the handler must not. */
    coil__unwind_here(watch->answer.pc, COIL__WATCH_FRAMES);
    mine = watch;
    pthread_mutex_lock(&life_lock);
    add(watch);
    if (joined == 0) {
        install();
        err = start_thread();
        if (err) restore();
    }
    if (!err) joined++;
    pthread_mutex_unlock(&life_lock);
    if (err) take_out(watch);
    return err;
}

void coil__watchdog_leave(struct coil__watch *watch) {
    if (!watch->w) return;
    pthread_mutex_lock(&life_lock);
    take_out(watch);
    if (--joined == 0) {
        pthread_join(watchdog, NULL);
        restore();
    }
    pthread_mutex_unlock(&life_lock);
}
