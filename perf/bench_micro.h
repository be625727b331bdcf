/* What the small benchmarks share: options, the CPU they stay on, rows of figures, and how these are printed.
 * Each of those programs is one file, so all of this stands in the header. */
#ifndef BENCH_MICRO_H
#define BENCH_MICRO_H

#include "bench_common.h"

#include <errno.h>
#include <getopt.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>

enum { MICRO_ROUNDS = 11, MICRO_ROUNDS_MAX = 1000, MICRO_ROWS_MAX = 24 };

/* One figure: a value per round. */
struct micro_row {
    char what[96];
    const char *unit;
    double *value;
    unsigned count;
};

struct micro {
    const char *program;
    unsigned rounds, rows;
    bool json;
    int cpu, other_cpu; /* where we stay; another one that we may use, -1: there is none */
    struct micro_row row[MICRO_ROWS_MAX];
};

_Noreturn static inline void micro_fail(const struct micro *m, const char *what, int err) {
    fprintf(stderr, "%s: %s: %s\n", m->program, what, strerror(err < 0 ? -err : err));
    exit(1);
}

static inline void micro_usage(const struct micro *m, const char *about, int status) {
    fprintf(status ? stderr : stdout, "%s\nusage: %s [--rounds N (1 to %d; %d)] [--json]\n", about,
            m->program, MICRO_ROUNDS_MAX, MICRO_ROUNDS);
    exit(status);
}

static inline void micro_options(struct micro *m, const char *about, int argc, char **argv) {
    static const struct option options[] = {{"rounds", required_argument, NULL, 'r'},
                                            {"json", no_argument, NULL, 'j'},
                                            {"help", no_argument, NULL, 'h'},
                                            {NULL, 0, NULL, 0}};
    for (int opt; (opt = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        char *end = "";
        long n = opt == 'r' ? strtol(optarg, &end, 10) : MICRO_ROUNDS;
        if (opt == '?' || *end || n < 1 || n > MICRO_ROUNDS_MAX) micro_usage(m, about, 2);
        if (opt == 'h') micro_usage(m, about, 0);
        if (opt == 'j') m->json = true;
        if (opt == 'r') m->rounds = (unsigned)n;
    }
    if (optind < argc) micro_usage(m, about, 2);
}

static inline void micro_pin(const struct micro *m, int cpu) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET((unsigned)cpu, &set);
    if (sched_setaffinity(0, sizeof set, &set) < 0) micro_fail(m, "could not stay on one CPU", errno);
}

/* The last CPU that we may use: the first ones have most of the system's interrupts. */
static inline void micro_choose_cpus(struct micro *m) {
    cpu_set_t set;
    m->cpu = m->other_cpu = -1;
    if (sched_getaffinity(0, sizeof set, &set) < 0) micro_fail(m, "sched_getaffinity", errno);
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        if (!CPU_ISSET((unsigned)cpu, &set)) continue;
        m->other_cpu = m->cpu;
        m->cpu = cpu;
    }
}

/* Reads the options and pins the program. `about` is a sentence that says what is measured. */
static inline void micro_begin(struct micro *m, const char *program, const char *about, int argc,
                               char **argv) {
    *m = (struct micro){.program = program, .rounds = MICRO_ROUNDS};
    micro_options(m, about, argc, argv);
    micro_choose_cpus(m);
    micro_pin(m, m->cpu);
}

/* A new row; its number goes to micro_add. */
__attribute__((format(printf, 3, 4))) static inline unsigned micro_row(struct micro *m, const char *unit,
                                                                       const char *fmt, ...) {
    if (m->rows == MICRO_ROWS_MAX) micro_fail(m, "too many rows", ENOSPC);
    struct micro_row *r = &m->row[m->rows];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(r->what, sizeof r->what, fmt, ap);
    va_end(ap);
    r->unit = unit;
    r->value = calloc(m->rounds, sizeof *r->value);
    if (!r->value) micro_fail(m, r->what, ENOMEM);
    return m->rows++;
}

static inline void micro_add(struct micro *m, unsigned row, double value) {
    struct micro_row *r = &m->row[row];
    if (r->count == m->rounds) micro_fail(m, r->what, EOVERFLOW);
    r->value[r->count++] = value;
}

static inline int micro_ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Sorts v. The value below which the given part of all lies; the mean of the middle two for half of an even
 * number. */
static inline double micro_quantile(double *v, size_t n, double part) {
    qsort(v, n, sizeof *v, micro_ascending);
    size_t at = (size_t)((double)n * part);
    if (at >= n) at = n - 1;
    return part == 0.5 && n % 2 == 0 ? (v[n / 2 - 1] + v[n / 2]) / 2 : v[at];
}

/* The CPU time of the calling thread. */
static inline int64_t micro_cpu_ns(void) {
    struct timespec ts;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
    return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

static inline void micro_cpu_model(char *out, size_t size, const struct utsname *u) {
    char line[256];
    snprintf(out, size, "%s", u->machine);
    FILE *f = fopen("/proc/cpuinfo", "r");
    while (f && fgets(line, sizeof line, f)) {
        char *name = strchr(line, ':');
        if (strncmp(line, "model name", 10) != 0 || !name) continue;
        name[strcspn(name, "\n")] = 0;
        snprintf(out, size, "%s", name + 2);
        break;
    }
    if (f) fclose(f);
}

/* Three or four digits of a number are worth printing. */
static inline const char *micro_text(double v, char buf[32]) {
    snprintf(buf, 32, "%.*f", v < 10 ? 2 : v < 1000 ? 1 : 0, v);
    return buf;
}

static inline void micro_print_row(const struct micro *m, struct micro_row *r, bool last) {
    double median = micro_quantile(r->value, r->count, 0.5);
    double least = r->value[0], most = r->value[r->count - 1];
    char text[3][32];
    if (m->json) {
        printf("{\"what\":\"%s\",\"unit\":\"%s\",\"median\":%.3f,\"min\":%.3f,\"max\":%.3f,\"rounds\":%u}%s",
               r->what, r->unit, median, least, most, r->count, last ? "" : ",");
    } else {
        printf("%-66s %8s %s (%s to %s)\n", r->what, micro_text(median, text[0]), r->unit,
               micro_text(least, text[1]), micro_text(most, text[2]));
    }
}

/* The conditions, then a line for each row: the median over the rounds, and the least and the greatest. */
static inline void micro_end(struct micro *m) {
    char model[128];
    struct utsname u;
    uname(&u);
    micro_cpu_model(model, sizeof model, &u);
    printf(m->json ? "{\"program\":\"%s\",\"cpu\":\"%s\",\"kernel\":\"%s %s\",\"on_cpu\":%d,\"figures\":["
                   : "%s: %s, %s %s, on CPU %d; medians (least to greatest) over the rounds\n",
           m->program, model, u.sysname, u.release, m->cpu);
    for (unsigned i = 0; i < m->rows; i++)
        micro_print_row(m, &m->row[i], i + 1 == m->rows);
    if (m->json) printf("]}\n");
    for (unsigned i = 0; i < m->rows; i++)
        free(m->row[i].value);
}

#endif
