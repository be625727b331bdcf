/* What the machine tells of itself. Where there is no /proc, what is only there stays unknown. */
#include "doctor.h"

#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static struct known number_in(const char *path) {
    struct known k = {0};
    FILE *f = fopen(path, "re");
    if (!f) return k;
    k.yes = fscanf(f, "%lld", &k.value) == 1;
    fclose(f);
    return k;
}

static struct known seccomp_mode(void) {
    struct known k = {0};
    char line[256];
    FILE *f = fopen("/proc/self/status", "re");
    if (!f) return k;
    while (!k.yes && fgets(line, sizeof line, f))
        k.yes = sscanf(line, "Seccomp: %lld", &k.value) == 1;
    fclose(f);
    return k;
}

/* Those that this process may run on; a mask too small for the machine's is an error, so then all of them. */
static int cpu_count(void) {
    cpu_set_t may;
    if (sched_getaffinity(0, sizeof may, &may) == 0) return CPU_COUNT(&may);
    return (int)sysconf(_SC_NPROCESSORS_ONLN);
}

void doctor_look(struct doctor *d) {
    uname(&d->kernel);
    d->page_size = sysconf(_SC_PAGESIZE);
    d->cpus = cpu_count();
    getrlimit(RLIMIT_MEMLOCK, &d->locked_memory);
    getrlimit(RLIMIT_NOFILE, &d->descriptors);
    d->max_map_count = number_in("/proc/sys/vm/max_map_count");
    d->somaxconn = number_in("/proc/sys/net/core/somaxconn");
    d->uring_disabled = number_in("/proc/sys/kernel/io_uring_disabled");
    d->uring_group = number_in("/proc/sys/kernel/io_uring_group");
    d->seccomp = seccomp_mode();
    d->driver_variable = getenv("COIL_DRIVER");
    d->caps_variable = getenv("COIL_CAPS");
}
