#include "bench_common.h"

#include <dirent.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

static double bucket_middle_ns(unsigned i) {
    if (i < 64) return i;
    unsigned shift = i / 64 - 1;
    return (double)((64ull + i % 64) << shift) + (double)(1ull << shift) / 2;
}

double bench_hist_us(const struct bench_hist *h, double quantile) {
    uint64_t rank = (uint64_t)((double)h->total * quantile), seen = 0;
    for (unsigned i = 0; i < BENCH_HIST_BUCKETS; i++) {
        seen += h->bucket[i];
        if (seen > rank) return bucket_middle_ns(i) / 1000;
    }
    return 0;
}

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double bench_median(const double *v, size_t n) {
    if (n == 0) return 0;
    double *sorted = malloc(n * sizeof *sorted);
    if (!sorted) abort();
    memcpy(sorted, v, n * sizeof *sorted);
    qsort(sorted, n, sizeof *sorted, ascending);
    double m = n % 2 ? sorted[n / 2] : (sorted[n / 2 - 1] + sorted[n / 2]) / 2;
    free(sorted);
    return m;
}

/* The first field of schedstat is the time on the CPU in nanoseconds. */
static int64_t thread_run_ns(pid_t pid) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/schedstat", (int)pid);
    FILE *f = fopen(path, "r");
    if (!f) return 0;
    long long ns = 0;
    if (fscanf(f, "%lld", &ns) != 1) ns = 0;
    fclose(f);
    return ns;
}

/* All threads of the server, also ended ones and the kernel's helpers in its name, and the softirq thread of
 * its CPU, which does the server's network work whenever interrupts come too fast. */
int64_t bench_cpu_ns(const struct bench_target *t) {
    clockid_t clock;
    struct timespec ts;
    if (t->server == 0 || clock_getcpuclockid(t->server, &clock) != 0 || clock_gettime(clock, &ts) < 0)
        return 0;
    int64_t ns = (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
    return t->ksoftirqd ? ns + thread_run_ns(t->ksoftirqd) : ns;
}

static bool process_is_called(const char *pid, const char *name) {
    char path[300], comm[64] = "";
    snprintf(path, sizeof path, "/proc/%s/comm", pid);
    FILE *f = fopen(path, "r");
    if (!f) return false;
    bool same = fscanf(f, "%63s", comm) == 1 && strcmp(comm, name) == 0;
    fclose(f);
    return same;
}

pid_t bench_ksoftirqd(int cpu) {
    char name[32];
    snprintf(name, sizeof name, "ksoftirqd/%d", cpu);
    DIR *proc = opendir("/proc");
    if (!proc) return 0;
    pid_t found = 0;
    for (struct dirent *e; !found && (e = readdir(proc));)
        if (process_is_called(e->d_name, name)) found = (pid_t)atoi(e->d_name);
    closedir(proc);
    return found;
}

void bench_pin(int cpu) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET((unsigned)cpu, &set);
    if (sched_setaffinity(0, sizeof set, &set) < 0)
        fprintf(stderr, "echo_bench: could not stay on CPU %d: %s\n", cpu, strerror(errno));
}

/* The last CPU we may use for the server, the one before it for the load. Returns how many we may use. */
int bench_last_cpus(int *server, int *load) {
    cpu_set_t set;
    CPU_ZERO(&set);
    if (sched_getaffinity(0, sizeof set, &set) < 0) CPU_SET(0, &set);
    int count = 0;
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        if (!CPU_ISSET((unsigned)cpu, &set)) continue;
        *load = count ? *server : cpu;
        *server = cpu;
        count++;
    }
    return count;
}

/* Raises the number of open files as far as the system lets us, and says how far that was. */
long bench_files_max(void) {
    struct rlimit lim = {0, 0};
    getrlimit(RLIMIT_NOFILE, &lim);
    struct rlimit more = {65536, lim.rlim_max > 65536 ? lim.rlim_max : 65536};
    if (lim.rlim_cur < 65536 && setrlimit(RLIMIT_NOFILE, &more) < 0) {
        lim.rlim_cur = lim.rlim_max;
        setrlimit(RLIMIT_NOFILE, &lim);
    }
    getrlimit(RLIMIT_NOFILE, &lim);
    return lim.rlim_cur > 1000000 ? 1000000 : (long)lim.rlim_cur;
}

/* A ring that dies with an accept pending holds its port for some milliseconds after the process has ended.
 */
static int bind_within_a_second(int fd, const struct sockaddr_in *in) {
    int err = bind(fd, (const struct sockaddr *)in, sizeof *in);
    for (int tries = 0; err < 0 && errno == EADDRINUSE && tries < 100; tries++) {
        nanosleep(&(struct timespec){0, 10000000}, NULL);
        err = bind(fd, (const struct sockaddr *)in, sizeof *in);
    }
    return err;
}

/* A connection inherits TCP_NODELAY from the listening socket. Returns a descriptor or a negative errno. */
int bench_listen(const struct bench_server *s, int flags) {
    struct sockaddr_in in = {.sin_family = AF_INET, .sin_port = htons((uint16_t)s->opts->port)};
    socklen_t len = sizeof in;
    int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | flags, 0);
    if (fd < 0) return -errno;
    in.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (bind_within_a_second(fd, &in) < 0 || listen(fd, 4096) < 0 ||
        getsockname(fd, (struct sockaddr *)&in, &len) < 0) {
        int err = -errno;
        close(fd);
        return err;
    }
    bench_ready(s, ntohs(in.sin_port));
    return fd;
}

void bench_ready(const struct bench_server *s, unsigned port) {
    if (s->ready_fd < 0) {
        fprintf(stderr, "listening on 127.0.0.1:%u\n", port);
        return;
    }
    if (write(s->ready_fd, &port, sizeof port) != (ssize_t)sizeof port) perror("echo_bench: tell the port");
}
