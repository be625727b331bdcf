/* echo_bench: coil's echo server measured beside hand-written io_uring and epoll servers, in one run, on one
 * machine. */
#include "bench_report.h"
#include "bench_run.h"

#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char help[] =
    "echo_bench compares echo servers: each in turn runs in a process of its own on one CPU, while a\n"
    "load generator in another process, on another CPU, sends messages over TCP and checks every byte\n"
    "that comes back.\n"
    "\n"
    "usage: echo_bench [options]\n"
    "\n"
    "What is sent\n"
    "  --connections N   clients, all connected the whole time (64; at most 10000)\n"
    "  --size BYTES      length of one message (106)\n"
    "  --depth N         messages a client may have under way at once (1)\n"
    "  --rate N          messages per second over all clients, whether or not answers have come;\n"
    "                    0: a client sends its next message when an answer has come (0)\n"
    "  --burst N         at a fixed rate: messages that are due together\n"
    "                    (a quarter of the connections, at most 250)\n"
    "  --seconds S       length of one measurement (3), after a warm-up of a fifth of it, at least 0.3 s\n"
    "  --rounds N        measurements of each server, interleaved; 9 and more for ratios near 1 (3)\n"
    "  --busy WHAT       one more connection, not measured, keeps the server busy. compute: its handler\n"
    "                    computes for 1 ms before each answer, and the next message comes at once;\n"
    "                    stream: it has data that never runs out, which the handler throws away\n"
    "\n"
    "Who answers\n"
    "  --servers LIST    of coil, coil-5.10, coil-epoll, raw, raw-send, raw-sqe, epoll (coil,raw,epoll)\n"
    "                    raw is the better of raw-send and raw-sqe: both are measured\n"
    "                    coil-5.10: coil with what Linux 5.10 has; coil-epoll: coil over epoll\n"
    "                    tiers stands for coil-5.10,coil-epoll,epoll: those two against plain epoll\n"
    "  --framed          coil's server reads and writes each message on its own\n"
    "  --spin            coil and raw poll a little before they block\n"
    "  --no-spin         neither does; without these two, coil does as it does by default, and raw blocks\n"
    "  --spin-max US     how long they may poll (50)\n"
    "  --spin-gap US     raw polls while pauses are shorter than this (as --spin-max)\n"
    "  --no-null         leave out raw and epoll against themselves, which shows how wide chance is\n"
    "                    (--null: keep it)\n"
    "  --server-cpu N, --load-cpu N   the two CPUs (the last two that we may use)\n"
    "  --one-shot        load generator without multishot receive, as on kernels before 6.0\n"
    "  --json FILE       write all figures as JSON too; - is standard output, instead of the table\n"
    "\n"
    "For profilers: one half alone\n"
    "  --server-only NAME [--port P] [--count N]   a server, until N messages are echoed or SIGTERM\n"
    "  --load-only PORT --requests N               a closed loop of N messages against a running server\n"
    "\n"
    "CPU us/req is the run time of all of the server's threads and of its CPU's softirq thread, per\n"
    "message. Ratios are coil's figure over the other's, taken in each round, then the median: above 1 is\n"
    "better for requests/s, below 1 for CPU. coil-5.10 and coil-epoll are held to plain epoll in the same\n"
    "way.\n";

/* Above every character, so that none is taken for a short option. */
enum {
    OPT_CONNECTIONS = 256,
    OPT_SIZE,
    OPT_DEPTH,
    OPT_RATE,
    OPT_BURST,
    OPT_BUSY,
    OPT_SECONDS,
    OPT_ROUNDS,
    OPT_SERVERS,
    OPT_FRAMED,
    OPT_SPIN,
    OPT_NO_SPIN,
    OPT_SPIN_MAX,
    OPT_SPIN_GAP,
    OPT_NULL,
    OPT_NO_NULL,
    OPT_SERVER_CPU,
    OPT_LOAD_CPU,
    OPT_ONE_SHOT,
    OPT_JSON,
    OPT_SERVER_ONLY,
    OPT_PORT,
    OPT_COUNT,
    OPT_LOAD_ONLY,
    OPT_REQUESTS,
    OPT_HELP,
};

static const struct option long_options[] = {
    {"connections", required_argument, NULL, OPT_CONNECTIONS},
    {"size", required_argument, NULL, OPT_SIZE},
    {"depth", required_argument, NULL, OPT_DEPTH},
    {"rate", required_argument, NULL, OPT_RATE},
    {"burst", required_argument, NULL, OPT_BURST},
    {"busy", required_argument, NULL, OPT_BUSY},
    {"seconds", required_argument, NULL, OPT_SECONDS},
    {"rounds", required_argument, NULL, OPT_ROUNDS},
    {"servers", required_argument, NULL, OPT_SERVERS},
    {"framed", no_argument, NULL, OPT_FRAMED},
    {"spin", no_argument, NULL, OPT_SPIN},
    {"no-spin", no_argument, NULL, OPT_NO_SPIN},
    {"spin-max", required_argument, NULL, OPT_SPIN_MAX},
    {"spin-gap", required_argument, NULL, OPT_SPIN_GAP},
    {"null", no_argument, NULL, OPT_NULL},
    {"no-null", no_argument, NULL, OPT_NO_NULL},
    {"server-cpu", required_argument, NULL, OPT_SERVER_CPU},
    {"load-cpu", required_argument, NULL, OPT_LOAD_CPU},
    {"one-shot", no_argument, NULL, OPT_ONE_SHOT},
    {"json", required_argument, NULL, OPT_JSON},
    {"server-only", required_argument, NULL, OPT_SERVER_ONLY},
    {"port", required_argument, NULL, OPT_PORT},
    {"count", required_argument, NULL, OPT_COUNT},
    {"load-only", required_argument, NULL, OPT_LOAD_ONLY},
    {"requests", required_argument, NULL, OPT_REQUESTS},
    {"help", no_argument, NULL, OPT_HELP},
    {NULL, 0, NULL, 0},
};

_Noreturn static void refuse(const char *what, const char *value) {
    fprintf(stderr, "echo_bench: %s: %s (--help lists the options)\n", what, value);
    exit(2);
}

static double number(const char *text, const char *option, double least, double most) {
    char *end, what[100];
    errno = 0;
    double v = strtod(text, &end);
    if (errno == 0 && end != text && *end == 0 && v >= least && v <= most) return v;
    snprintf(what, sizeof what, "--%s takes a number from %g to %g, not", option, least, most);
    refuse(what, text);
}

static uint64_t whole(const char *text, const char *option, double least, double most) {
    double v = number(text, option, least, most);
    if (v != floor(v)) refuse("not a whole number", text);
    return (uint64_t)v;
}

/* Options of who answers and where; false: it is none of them. */
static bool server_option(struct bench_opts *o, int opt) {
    switch (opt) {
    case OPT_SERVERS:
        o->servers = optarg;
        return true;
    case OPT_FRAMED:
        o->framed = true;
        return true;
    case OPT_SPIN:
        o->spin = BENCH_SPIN_ALL;
        return true;
    case OPT_NO_SPIN:
        o->spin = BENCH_SPIN_NONE;
        return true;
    case OPT_SPIN_MAX:
        o->spin_max_ns = (int64_t)(number(optarg, "spin-max", 1, 1e6) * 1000);
        return true;
    case OPT_SPIN_GAP:
        o->spin_gap_ns = (int64_t)(number(optarg, "spin-gap", 1, 1e6) * 1000);
        return true;
    case OPT_NULL:
        o->null_band = true;
        return true;
    case OPT_NO_NULL:
        o->null_band = false;
        return true;
    case OPT_SERVER_CPU:
        o->server_cpu = (int)whole(optarg, "server-cpu", 0, 1023);
        return true;
    case OPT_LOAD_CPU:
        o->load_cpu = (int)whole(optarg, "load-cpu", 0, 1023);
        return true;
    case OPT_SERVER_ONLY:
        o->server_only = optarg;
        return true;
    case OPT_PORT:
        o->port = (unsigned)whole(optarg, "port", 0, 65535);
        return true;
    case OPT_COUNT:
        o->count = whole(optarg, "count", 0, 1e12);
        return true;
    default:
        return false;
    }
}

static enum bench_busy busy_kind(const char *name) {
    if (strcmp(name, "compute") == 0) return BENCH_BUSY_COMPUTE;
    if (strcmp(name, "stream") == 0) return BENCH_BUSY_STREAM;
    refuse("--busy takes compute or stream, not", name);
}

static void load_option(struct bench_opts *o, int opt) {
    switch (opt) {
    case OPT_CONNECTIONS:
        o->connections = (unsigned)whole(optarg, "connections", 1, 10000);
        break;
    case OPT_SIZE:
        o->size = whole(optarg, "size", 1, 1 << 20);
        break;
    case OPT_DEPTH:
        o->depth = (unsigned)whole(optarg, "depth", 1, 1024);
        break;
    case OPT_RATE:
        o->rate = whole(optarg, "rate", 0, 1e7);
        break;
    case OPT_BURST:
        o->burst = (unsigned)whole(optarg, "burst", 1, 100000);
        break;
    case OPT_BUSY:
        o->busy = busy_kind(optarg);
        break;
    case OPT_SECONDS:
        o->seconds = number(optarg, "seconds", 0.1, 3600);
        break;
    case OPT_ROUNDS:
        o->rounds = (unsigned)whole(optarg, "rounds", 1, 1000);
        break;
    case OPT_ONE_SHOT:
        o->one_shot = true;
        break;
    case OPT_JSON:
        o->json = optarg;
        break;
    case OPT_LOAD_ONLY:
        o->load_only_port = (unsigned)whole(optarg, "load-only", 1, 65535);
        break;
    case OPT_REQUESTS:
        o->requests = whole(optarg, "requests", 1, 1e12);
        break;
    case OPT_HELP:
        fputs(help, stdout);
        exit(0);
    default:
        fprintf(stderr, "echo_bench --help lists the options\n");
        exit(2);
    }
}

static void complete(struct bench_opts *o) {
    o->warmup = o->seconds / 5 < 0.3 ? 0.3 : o->seconds / 5;
    if (o->spin_gap_ns == 0) o->spin_gap_ns = o->spin_max_ns;
    if (o->burst == 0) o->burst = o->connections / 4 > 250 ? 250 : o->connections / 4;
    if (o->burst == 0) o->burst = 1;
    if (o->server_only && !bench_find_server(o->server_only)) refuse("no such server", o->server_only);
    if (o->load_only_port && !o->requests) refuse("--load-only also needs", "--requests N");
    if (!o->load_only_port && o->requests) refuse("--requests goes with", "--load-only PORT");
    if (o->load_only_port && o->rate) refuse("--load-only is a closed loop: leave out", "--rate");
}

static void read_options(struct bench_opts *o, int argc, char **argv) {
    for (int opt; (opt = getopt_long(argc, argv, "", long_options, NULL)) != -1;)
        if (!server_option(o, opt)) load_option(o, opt);
    if (optind < argc) refuse("not an option", argv[optind]);
    complete(o);
}

static void add_entry(struct bench_run *r, const char *server, bool twin) {
    for (unsigned i = 0; i < r->entries && !twin; i++)
        if (strcmp(r->entry[i].server, server) == 0) return;
    if (r->entries == BENCH_ENTRIES_MAX || !bench_find_server(server)) refuse("no such server", server);
    struct bench_entry *e = &r->entry[r->entries++];
    *e =
        (struct bench_entry){server, bench_find_server(server), twin, calloc(r->o->rounds, sizeof *e->round)};
    if (!e->round) abort();
}

/* The first raw server, and whatever coil's tiers are held to, take part twice. */
static void add_twins(struct bench_run *r) {
    const char *held_to = NULL;
    for (unsigned i = 0; i < r->entries; i++)
        if (r->entry[i].kind->against) held_to = r->entry[i].kind->against;
    unsigned entries = r->entries, raw = 0;
    for (unsigned i = 0; i < entries; i++) {
        const char *server = r->entry[i].server;
        bool is_raw = strncmp(server, "raw-", 4) == 0;
        if ((is_raw && raw++ == 0) || (held_to && strcmp(server, held_to) == 0)) add_entry(r, server, true);
    }
}

static void add_entries(struct bench_run *r) {
    char *list = strdup(r->o->servers);
    if (!list) abort();
    for (char *rest = list, *name; (name = strsep(&rest, ","));) {
        if (strcmp(name, "raw") == 0) {
            add_entry(r, "raw-send", false);
            add_entry(r, "raw-sqe", false);
        } else if (strcmp(name, "tiers") == 0) {
            add_entry(r, "coil-5.10", false);
            add_entry(r, "coil-epoll", false);
            add_entry(r, "epoll", false);
        } else {
            add_entry(r, name, false);
        }
    }
    if (r->o->null_band) add_twins(r);
    r->names = list;
}

/* Interleaved, and each server in each place of the order, so that slow changes of the machine meet all
 * alike. */
static int run_rounds(struct bench_run *r) {
    const struct bench_opts *o = r->o;
    fprintf(stderr, "%u measurements, about %.0f s\n", r->entries * o->rounds,
            r->entries * o->rounds * (o->seconds + o->warmup + 0.2));
    for (unsigned round = 0; round < o->rounds; round++) {
        for (unsigned k = 0; k < r->entries; k++) {
            struct bench_entry *e = &r->entry[(round + k) % r->entries];
            struct bench_result *x = &e->round[round];
            fprintf(stderr, "round %u of %u: %-10s%s", round + 1, o->rounds, e->server,
                    e->twin ? " (again)" : "");
            bench_measure(o, e->server, x);
            if (x->error[0]) {
                fprintf(stderr, "\necho_bench: %s\n", x->error);
                return 1;
            }
            fprintf(stderr, " %9.0f requests/s, %.2f us CPU each\n", x->rps, x->cpu_us);
        }
    }
    return 0;
}

static int compare(const struct bench_opts *o, unsigned cpus) {
    struct bench_run r = {.o = o, .cpus = cpus};
    add_entries(&r);
    if (o->server_cpu == o->load_cpu)
        fprintf(stderr, "Server and load generator share CPU %d: the figures say little.\n", o->server_cpu);
    int status = run_rounds(&r);
    bool json_only = o->json && strcmp(o->json, "-") == 0;
    if (status == 0 && !json_only) {
        bench_print_machine(&r);
        bench_print_table(&r);
    }
    int err = status == 0 && o->json ? bench_write_json(&r) : 0;
    if (err < 0) fprintf(stderr, "echo_bench: %s: %s\n", o->json, strerror(-err));
    for (unsigned i = 0; i < r.entries; i++)
        free(r.entry[i].round);
    free(r.names);
    return status || err < 0;
}

static int load_alone(const struct bench_opts *o) {
    struct bench_target t = {.port = o->load_only_port};
    struct bench_result x = {0};
    bench_pin(o->load_cpu);
    bench_load(o, &t, &x);
    if (x.error[0]) {
        fprintf(stderr, "echo_bench: %s\n", x.error);
        return 1;
    }
    printf("%llu requests in %.3f s, %.0f requests/s, p50 %.1f us, p99 %.1f us\n",
           (unsigned long long)x.requests, x.seconds, x.rps, x.p50_us, x.p99_us);
    return 0;
}

int main(int argc, char **argv) {
    struct bench_opts o = {
        .connections = 64,
        .size = 106,
        .depth = 1,
        .seconds = 3,
        .rounds = 3,
        .servers = "coil,raw,epoll",
        .null_band = true,
        .spin_max_ns = 50000,
    };
    int cpus = bench_last_cpus(&o.server_cpu, &o.load_cpu);
    read_options(&o, argc, argv);
    if (o.server_only) return bench_serve_here(&o, o.server_only, -1);
    if (o.load_only_port) return load_alone(&o);
    return compare(&o, (unsigned)cpus);
}
