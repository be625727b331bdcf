/* Who waits for what: a line for each task, and the circles among them. */
#include "dump.h"

#include <string.h>

enum { NAMED_MAX = 4, CYCLES_MAX = 8, CYCLE_NAMES_MAX = 16 };
enum { NEW, ON_PATH, DONE }; /* report_mark */

void coil__print_ns(FILE *out, int64_t ns) {
    int64_t ms = ns / 1000000;
    fprintf(out, "%lld.%03d s", (long long)(ms / 1000), (int)(ms % 1000));
}

/* A lock is held by somebody; else it is somebody's end that is waited for, among other things by a select.
 */
static const char *relation(const char *what) {
    if (strcmp(what, "select") == 0) return " that joins ";
    return strstr(what, "lock") || strstr(what, "mutex") ? " held by " : " of ";
}

static void print_blockers(FILE *out, const struct coil__wait *w) {
    char buf[32];
    const struct coil__task *b = w->blocker ? w->blocker(w, NULL) : NULL;
    if (!b) {
        /* A mutex for which somebody waits has an owner. */
        if (strcmp(w->what, "mutex") == 0) fputs(" held by a task that has ended", out);
        return;
    }
    fprintf(out, "%s%s", relation(w->what), coil__task_name(b, buf));
    for (int n = 1; (b = w->blocker(w, b)); n++) {
        if (n == NAMED_MAX) {
            fprintf(out, " and others");
            return;
        }
        fprintf(out, ", %s", coil__task_name(b, buf));
    }
}

void coil__print_wait(FILE *out, const struct coil__task *t, int64_t now_ns) {
    const struct coil__wait *w = t->wait;
    fputs(w->what, out);
    if (w->fd >= 0) fprintf(out, " on descriptor %d", w->fd);
    print_blockers(out, w);
    fputs(", for ", out);
    coil__print_ns(out, MAX(now_ns - t->since_ns, 0));
}

void coil__report_waits(struct coil__worker *w) {
    char buf[32];
    struct coil__sched *s = &w->s;
    uint32_t slots = atomic_load(&s->slots);
    for (uint32_t i = 0; i < slots; i++) {
        const struct coil__task *t = coil__task_at(s, i);
        if (t->state != COIL__READY && t->state != COIL__PARKED) continue;
        fprintf(stderr, "coil:   %s: ", coil__task_name(t, buf));
        if (t->state == COIL__PARKED) {
            fputs("waits for ", stderr);
            coil__print_wait(stderr, t, s->now_ns);
            fputc('\n', stderr);
        } else {
            fputs("is ready to run\n", stderr);
        }
    }
}

/* ---- circles ----
 *
 * A walk along the blockers that looks at each task once. It needs no memory: report_first of a task on the
 * path is the slot of the blocker that the path goes on with, and report_next that of the task before. */

static void print_cycle(struct coil__sched *s, const struct coil__task *first) {
    char a[32], b[32];
    const struct coil__task *t = first;
    fputs("coil:   in a circle: ", stderr);
    for (int n = 0;; n++) {
        const struct coil__task *next = coil__task_at(s, t->report_first);
        if (n == CYCLE_NAMES_MAX) {
            fputs("and others", stderr);
            break;
        }
        fprintf(stderr, "%s waits for %s%s%s", coil__task_name(t, a), t->wait->what, relation(t->wait->what),
                coil__task_name(next, b));
        t = next;
        if (t == first) break;
        fputs(", ", stderr);
    }
    fputc('\n', stderr);
}

/* The next of those that t waits for, after the one that was looked at last. */
static struct coil__task *next_blocker(struct coil__task *t) {
    const struct coil__wait *w = t->state == COIL__PARKED ? t->wait : NULL;
    const struct coil__task *last =
        t->report_first == UINT32_MAX ? NULL : coil__task_at(t->sched, t->report_first);
    const struct coil__task *b = w && w->blocker ? w->blocker(w, last) : NULL;
    if (!b) return NULL;
    t->report_first = b->slot;
    return coil__task_at(t->sched, b->slot);
}

/* Walks from one task on; returns how many circles it has met and printed. */
static int walk_from(struct coil__task *t, int cycles_max) {
    struct coil__sched *s = t->sched;
    int cycles = 0;
    t->report_mark = ON_PATH;
    t->report_next = UINT32_MAX;
    while (t) {
        struct coil__task *b = next_blocker(t);
        if (!b) {
            t->report_mark = DONE;
            t = t->report_next == UINT32_MAX ? NULL : coil__task_at(s, t->report_next);
        } else if (b->report_mark == ON_PATH) {
            if (cycles < cycles_max) print_cycle(s, b);
            cycles++;
        } else if (b->report_mark == NEW) {
            b->report_mark = ON_PATH;
            b->report_next = t->slot;
            t = b;
        }
    }
    return cycles;
}

void coil__report_circles(struct coil__worker *w) {
    int cycles = 0;
    struct coil__sched *s = &w->s;
    uint32_t slots = atomic_load(&s->slots);
    for (uint32_t i = 0; i < slots; i++) {
        struct coil__task *t = coil__task_at(s, i);
        t->report_mark = NEW;
        t->report_first = UINT32_MAX;
    }
    for (uint32_t i = 0; i < slots; i++) {
        struct coil__task *t = coil__task_at(s, i);
        if (t->report_mark == NEW && t->state == COIL__PARKED) cycles += walk_from(t, CYCLES_MAX - cycles);
    }
    if (cycles > CYCLES_MAX)
        fprintf(stderr, "coil:   and %d more circles are not shown\n", cycles - CYCLES_MAX);
}
