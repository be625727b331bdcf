#include "bench_report.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>

typedef double field_fn(const struct bench_result *);

static double rps(const struct bench_result *x) {
    return x->rps;
}
static double p50(const struct bench_result *x) {
    return x->p50_us;
}
static double p99(const struct bench_result *x) {
    return x->p99_us;
}
static double p999(const struct bench_result *x) {
    return x->p999_us;
}
static double cpu(const struct bench_result *x) {
    return x->cpu_us;
}

struct spread {
    double least, median, most;
};

static double median_of(const struct bench_run *r, const struct bench_entry *e, field_fn *field) {
    double v[r->o->rounds];
    for (unsigned i = 0; i < r->o->rounds; i++)
        v[i] = field(&e->round[i]);
    return bench_median(v, r->o->rounds);
}

/* A round's two figures were taken close together, so their ratio is steadier than either. */
static struct spread ratio_of(const struct bench_run *r, const struct bench_entry *a,
                              const struct bench_entry *b, field_fn *field) {
    double v[r->o->rounds];
    struct spread s = {HUGE_VAL, 0, 0};
    for (unsigned i = 0; i < r->o->rounds; i++) {
        double below = field(&b->round[i]);
        v[i] = below > 0 ? field(&a->round[i]) / below : 0;
        if (v[i] < s.least) s.least = v[i];
        if (v[i] > s.most) s.most = v[i];
    }
    s.median = bench_median(v, r->o->rounds);
    return s;
}

static const struct bench_entry *find(const struct bench_run *r, const char *server) {
    for (unsigned i = 0; i < r->entries; i++)
        if (!r->entry[i].twin && strcmp(r->entry[i].server, server) == 0) return &r->entry[i];
    return NULL;
}

/* What an entry is held to besides coil; NULL: nothing that takes part. */
static const struct bench_entry *find_against(const struct bench_run *r, const struct bench_entry *e) {
    return e->kind->against ? find(r, e->kind->against) : NULL;
}

/* The better of the two hand-written servers: by throughput where that is free, by CPU where the rate is
 * given. */
static const struct bench_entry *find_raw(const struct bench_run *r) {
    const struct bench_entry *a = find(r, "raw-send"), *b = find(r, "raw-sqe");
    if (!a || !b) return a ? a : b;
    if (r->o->rate) return median_of(r, a, cpu) <= median_of(r, b, cpu) ? a : b;
    return median_of(r, a, rps) >= median_of(r, b, rps) ? a : b;
}

static void cpu_model(char *text, size_t n) {
    char line[256];
    snprintf(text, n, "unknown CPU");
    FILE *f = fopen("/proc/cpuinfo", "r");
    if (!f) return;
    while (fgets(line, sizeof line, f)) {
        char *value = strchr(line, ':');
        if (strncmp(line, "model name", 10) != 0 || !value) continue;
        value[strcspn(value, "\n")] = 0;
        snprintf(text, n, "%s", value + 2);
        break;
    }
    fclose(f);
}

static const char *spin_text(const struct bench_opts *o) {
    static char all[64];
    if (o->spin == BENCH_SPIN_NONE) return "nobody polls before blocking";
    if (o->spin == BENCH_SPIN_AS_THEY_COME) return "coil polls by its own default, raw never";
    snprintf(all, sizeof all, "coil and raw poll for up to %.0f us", (double)o->spin_max_ns / 1000);
    return all;
}

static void pace_text(const struct bench_opts *o, char *text, size_t n) {
    if (o->rate == 0)
        snprintf(text, n, "closed loop");
    else
        snprintf(text, n, "%llu requests/s in bursts of %u", (unsigned long long)o->rate, o->burst);
}

static const char *busy_text(const struct bench_opts *o) {
    static const char *const text[] = {
        [BENCH_BUSY_NONE] = "",
        [BENCH_BUSY_COMPUTE] =
            "beside one whose handler computes for 1 ms at a time; the others' figures, but all CPU\n",
        [BENCH_BUSY_STREAM] = "beside one whose data never runs out; the others' figures, but all CPU\n",
    };
    return text[o->busy];
}

void bench_print_machine(const struct bench_run *r) {
    const struct bench_opts *o = r->o;
    struct utsname u;
    char model[128], pace[80];
    uname(&u);
    cpu_model(model, sizeof model);
    pace_text(o, pace, sizeof pace);
    printf("%s %s %s, %u CPUs, %s\n", u.sysname, u.release, u.machine, r->cpus, model);
    printf("server on CPU %d, load generator on CPU %d; %s\n", o->server_cpu, o->load_cpu, spin_text(o));
    printf("%u connections, messages of %zu bytes, %u under way on each, %s%s\n", o->connections, o->size,
           o->depth, pace, o->framed ? "; coil reads and writes each message on its own" : "");
    printf("%s", busy_text(o));
    printf("%u rounds of %.1f s, interleaved; medians\n\n", o->rounds, o->seconds);
}

static void print_null_band(const struct bench_run *r, const struct bench_entry *twin) {
    const struct bench_entry *same = find(r, twin->server);
    struct spread t = ratio_of(r, twin, same, rps), c = ratio_of(r, twin, same, cpu);
    printf("null band, %s against itself: requests/s %.3f (%.3f to %.3f), CPU %.3f (%.3f to %.3f)\n",
           twin->server, t.median, t.least, t.most, c.median, c.least, c.most);
}

static void print_null_bands(const struct bench_run *r) {
    bool any = false;
    for (unsigned i = 0; i < r->entries; i++) {
        if (!r->entry[i].twin) continue;
        print_null_band(r, &r->entry[i]);
        any = true;
    }
    if (any) printf("Ratios inside it are chance.\n\n");
}

/* coil on an old kernel, or without io_uring, is held to what one would write there in plain C. */
static void print_against(const struct bench_run *r, const struct bench_entry *e) {
    const struct bench_entry *other = find_against(r, e);
    if (!other) return;
    struct spread t = ratio_of(r, e, other, rps), c = ratio_of(r, e, other, cpu);
    printf("%s/%s: requests/s %.3f (%.3f to %.3f), CPU %.3f (%.3f to %.3f), bar %.2f\n", e->server,
           other->server, t.median, t.least, t.most, c.median, c.least, c.most, e->kind->cpu_bar);
}

static void print_row(const struct bench_run *r, const struct bench_entry *e) {
    const struct bench_entry *coil = find(r, "coil");
    printf("%-10s %-4s %11.0f %9.1f %9.1f %9.1f %10.2f", e->server, e == find_raw(r) ? "=raw" : "",
           median_of(r, e, rps), median_of(r, e, p50), median_of(r, e, p99), median_of(r, e, p999),
           median_of(r, e, cpu));
    if (coil && e != coil)
        printf("   %9.3f %7.3f", ratio_of(r, coil, e, rps).median, ratio_of(r, coil, e, cpu).median);
    printf("\n");
}

static void print_not_kept_up(const struct bench_run *r, const struct bench_entry *e) {
    unsigned long long missed = 0;
    for (unsigned i = 0; i < r->o->rounds; i++)
        missed += e->round[i].missed;
    double reached = median_of(r, e, rps), rate = (double)r->o->rate;
    if (missed)
        printf("%s could not keep up: %llu requests were due but never sent\n", e->server, missed);
    else if (reached < 0.98 * rate)
        printf("%s could not keep up: %.0f requests/s of %.0f\n", e->server, reached, rate);
}

void bench_print_table(const struct bench_run *r) {
    print_null_bands(r);
    printf("%-15s %11s %9s %9s %9s %10s", "server", "requests/s", "p50 us", "p99 us", "p99.9 us",
           "CPU us/req");
    if (find(r, "coil")) printf("   %9s %7s", "coil/it:", "CPU");
    printf("\n");
    for (unsigned i = 0; i < r->entries; i++)
        if (!r->entry[i].twin) print_row(r, &r->entry[i]);
    for (unsigned i = 0; i < r->entries; i++)
        print_against(r, &r->entry[i]);
    for (unsigned i = 0; i < r->entries; i++)
        print_not_kept_up(r, &r->entry[i]);
}

static void json_rounds(FILE *f, const struct bench_run *r, const struct bench_entry *e) {
    for (unsigned i = 0; i < r->o->rounds; i++) {
        const struct bench_result *x = &e->round[i];
        fprintf(f,
                "%s{\"requests\": %llu, \"missed\": %llu, \"seconds\": %.6f, \"requests_per_s\": %.1f, "
                "\"p50_us\": %.2f, \"p99_us\": %.2f, \"p999_us\": %.2f, \"cpu_us\": %.4f}",
                i ? ", " : "", (unsigned long long)x->requests, (unsigned long long)x->missed, x->seconds,
                x->rps, x->p50_us, x->p99_us, x->p999_us, x->cpu_us);
    }
}

static void json_entry(FILE *f, const struct bench_run *r, const struct bench_entry *e) {
    const struct bench_entry *coil = find(r, "coil");
    fprintf(f,
            "    {\"server\": \"%s\", \"twin\": %s, \"raw\": %s, \"requests_per_s\": %.1f, \"p50_us\": %.2f, "
            "\"p99_us\": %.2f, \"p999_us\": %.2f, \"cpu_us\": %.4f,\n",
            e->server, e->twin ? "true" : "false", e == find_raw(r) ? "true" : "false", median_of(r, e, rps),
            median_of(r, e, p50), median_of(r, e, p99), median_of(r, e, p999), median_of(r, e, cpu));
    if (coil && e != coil && !e->twin)
        fprintf(f, "     \"coil_ratio\": {\"requests_per_s\": %.4f, \"cpu\": %.4f},\n",
                ratio_of(r, coil, e, rps).median, ratio_of(r, coil, e, cpu).median);
    if (find_against(r, e))
        fprintf(f,
                "     \"against\": {\"server\": \"%s\", \"requests_per_s\": %.4f, \"cpu\": %.4f, "
                "\"cpu_bar\": %.2f},\n",
                e->kind->against, ratio_of(r, e, find_against(r, e), rps).median,
                ratio_of(r, e, find_against(r, e), cpu).median, e->kind->cpu_bar);
    fprintf(f, "     \"rounds\": [");
    json_rounds(f, r, e);
    fprintf(f, "]}");
}

static void json_null_bands(FILE *f, const struct bench_run *r) {
    unsigned count = 0;
    fprintf(f, "  \"null_bands\": [");
    for (unsigned i = 0; i < r->entries; i++) {
        const struct bench_entry *twin = &r->entry[i];
        if (!twin->twin) continue;
        const struct bench_entry *same = find(r, twin->server);
        struct spread t = ratio_of(r, twin, same, rps), c = ratio_of(r, twin, same, cpu);
        fprintf(f,
                "%s\n    {\"server\": \"%s\", \"requests_per_s\": [%.4f, %.4f, %.4f], \"cpu\": [%.4f, %.4f, "
                "%.4f]}",
                count++ ? "," : "", twin->server, t.least, t.median, t.most, c.least, c.median, c.most);
    }
    fprintf(f, "%s],\n", count ? "\n  " : "");
}

static void json_head(FILE *f, const struct bench_run *r) {
    static const char *const spin[] = {"as they come", "all", "none"};
    static const char *const busy[] = {"none", "compute", "stream"};
    const struct bench_opts *o = r->o;
    struct utsname u;
    char model[128];
    uname(&u);
    cpu_model(model, sizeof model);
    fprintf(f, "  \"machine\": {\"kernel\": \"%s\", \"arch\": \"%s\", \"cpus\": %u, \"model\": \"%s\"},\n",
            u.release, u.machine, r->cpus, model);
    fprintf(
        f,
        "  \"options\": {\"connections\": %u, \"size\": %zu, \"depth\": %u, \"rate\": %llu, \"burst\": %u, "
        "\"seconds\": %.2f, \"warmup\": %.2f, \"rounds\": %u, \"framed\": %s, \"spin\": \"%s\", "
        "\"busy\": \"%s\", "
        "\"server_cpu\": %d, \"load_cpu\": %d},\n",
        o->connections, o->size, o->depth, (unsigned long long)o->rate, o->burst, o->seconds, o->warmup,
        o->rounds, o->framed ? "true" : "false", spin[o->spin], busy[o->busy], o->server_cpu, o->load_cpu);
}

int bench_write_json(const struct bench_run *r) {
    bool to_stdout = strcmp(r->o->json, "-") == 0;
    FILE *f = to_stdout ? stdout : fopen(r->o->json, "w");
    if (!f) return -errno;
    fprintf(f, "{\n");
    json_head(f, r);
    json_null_bands(f, r);
    fprintf(f, "  \"servers\": [\n");
    for (unsigned i = 0; i < r->entries; i++) {
        json_entry(f, r, &r->entry[i]);
        fprintf(f, i + 1 < r->entries ? ",\n" : "\n");
    }
    fprintf(f, "  ]\n}\n");
    bool failed = ferror(f);
    if (!to_stdout && fclose(f) != 0) failed = true;
    return failed ? -EIO : 0;
}
