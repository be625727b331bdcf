/* The answer for a person: the verdict first, what to change last. */
#include "doctor.h"

#include <ctype.h>
#include <stdarg.h>
#include <string.h>

enum { WIDTH = 100, LABEL = 20, CHANGE = 44 };

static __attribute__((format(printf, 3, 4))) void row(FILE *to, const char *label, const char *fmt, ...) {
    va_list ap;
    fprintf(to, "  %-*s", LABEL, label);
    va_start(ap, fmt);
    vfprintf(to, fmt, ap);
    va_end(ap);
    fputc('\n', to);
}

static void title(FILE *to, const char *text) {
    fprintf(to, "\n%s\n", text);
}

/* Breaks the line at a blank where it would become too long. */
static void paragraph(FILE *to, const char *text) {
    int column = 0;
    while (*text) {
        int n = (int)strcspn(text, " ");
        if (column + n >= WIDTH) column = fprintf(to, "\n   ") - 1;
        if (column) fputc(' ', to);
        column += fprintf(to, "%.*s", n, text) + 1;
        text += n + strspn(text + n, " ");
    }
    fputc('\n', to);
}

/* A variable may hold anything, what moves a cursor too. */
static void variable(FILE *to, const char *name, const char *value) {
    char clean[64];
    size_t n = 0;
    for (; value && value[n] && n < sizeof clean - 1; n++)
        clean[n] = isprint((unsigned char)value[n]) ? value[n] : '?';
    clean[n] = '\0';
    row(to, name, "%s%s", value ? clean : "not set", value && value[n] ? "..." : "");
}

/* One limit, in units of `unit` bytes or descriptors. */
static const char *amount(char buf[32], rlim_t n, unsigned unit, const char *name) {
    if (n == RLIM_INFINITY) return "unlimited";
    snprintf(buf, 32, "%llu%s", (unsigned long long)n / unit, name);
    return buf;
}

static void limit(FILE *to, const char *label, const struct rlimit *l, unsigned unit, const char *name) {
    char soft[32], hard[32];
    bool can_rise = l->rlim_cur < l->rlim_max;
    row(to, label, "%s%s%s%s", amount(soft, l->rlim_cur, unit, name), can_rise ? " (can be raised to " : "",
        can_rise ? amount(hard, l->rlim_max, unit, name) : "", can_rise ? ")" : "");
}

static void number(FILE *to, const char *label, struct known k, const char *remark) {
    if (!k.yes) return;
    row(to, label, "%lld%s", k.value, remark);
}

static void tell_limits(const struct doctor *d, FILE *to) {
    static const char *const disabled[] = {" (everybody may use it)", " (only its group and root may use it)",
                                           " (nobody may use it)"};
    static const char *const modes[] = {"none", "strict", "a filter"};
    char stacks[64] = "";
    title(to, "limits");
    limit(to, "descriptors", &d->descriptors, 1, "");
    limit(to, "locked memory", &d->locked_memory, 1024, " KiB");
    if (d->guarded_stacks.yes)
        snprintf(stacks, sizeof stacks, " (guard pages for %lld stacks)", d->guarded_stacks.value);
    number(to, "max_map_count", d->max_map_count, stacks);
    number(to, "somaxconn", d->somaxconn, "");
    number(to, "io_uring_disabled", d->uring_disabled,
           disabled[d->uring_disabled.value == 0   ? 0
                    : d->uring_disabled.value == 1 ? 1
                                                   : 2]);
    if (d->uring_disabled.value == 1) number(to, "io_uring_group", d->uring_group, "");
    if (d->seccomp.yes) row(to, "seccomp", "%s", modes[d->seccomp.value < 2 ? d->seccomp.value : 2]);
}

static void tell_calls(const struct doctor *d, FILE *to) {
    bool all = true;
    for (unsigned i = 0; i < ARRAY_SIZE(d->answers); i++) {
        const struct answer *a = &d->answers[i];
        all &= !a->error;
        if (a->error) row(to, a->call, "forbidden or not there (%s)", doctor_errno_name(a->error));
    }
    if (all) row(to, "system calls", "all three allowed");
}

static void tell_drivers(const struct doctor *d, FILE *to) {
    title(to, "drivers");
    if (d->ring.code) {
        row(to, "io_uring", "no (error %d)", d->ring.code);
    } else if (d->sq_entries.yes && d->cq_entries.yes) {
        row(to, "io_uring", "can be used; %lld of %d requests and %lld of %d completions at once",
            d->sq_entries.value, SQ_WANTED, d->cq_entries.value, CQ_WANTED);
    } else {
        row(to, "io_uring", "can be used");
    }
    tell_calls(d, to);
    row(to, "epoll", "%s%s", d->epoll.code ? "no: " : "can be used", d->epoll.why_not);
    variable(to, "COIL_DRIVER", d->driver_variable);
    variable(to, "COIL_CAPS", d->caps_variable);
}

static void tell_capabilities(const struct doctor *d, FILE *to) {
    title(to, "capabilities");
    for (unsigned i = 0; i < COIL__CAP_COUNT; i++) {
        const struct coil__cap_info *c = &coil__cap_table[i];
        row(to, c->name, "%-12s%s", doctor_cap_state(d, i), doctor_has(d->used, i) ? c->use : c->without);
    }
}

static void tell_paths(const struct doctor *d, FILE *to) {
    title(to, "what a run does here");
    for (unsigned i = 0; i < PATHS; i++)
        row(to, d->paths[i].what, "%s", d->paths[i].how);
}

static void tell_advice(const struct doctor *d, FILE *to) {
    title(to, "for more");
    for (unsigned i = 0; i < d->advice_count; i++)
        fprintf(to, "  %-*s # %s\n", CHANGE, d->advice[i].change, d->advice[i].why);
}

void doctor_tell(const struct doctor *d, FILE *to) {
    paragraph(to, d->verdict);
    title(to, "machine");
    row(to, "kernel", "%s %s, %s", d->kernel.sysname, d->kernel.release, d->kernel.machine);
    row(to, "CPUs", "%d, pages of %ld bytes", d->cpus, d->page_size);
    tell_limits(d, to);
    tell_drivers(d, to);
    if (d->ring.code == 0) tell_capabilities(d, to);
    if (d->exit_status != CANNOT) tell_paths(d, to);
    if (d->advice_count) tell_advice(d, to);
}
