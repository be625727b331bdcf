/* A program for tests/tools/gdb: tasks that wait for several things, one that runs, one that has not begun.
 * With an argument: so many tasks that sleep, instead. */
#include <coil/coil.h>

#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

static volatile int kept;

/* Where the debugger stops it. */
static __attribute__((noinline)) void fixture_stop(void) {
    kept++;
}

static __attribute__((noinline)) int sleep_deep(int depth) {
    int err = depth ? sleep_deep(depth - 1) : coil_sleep(coil_sec(1000));
    kept++; /* no tail call */
    return err;
}

static int sleeper(void *arg) {
    (void)arg;
    int err = sleep_deep(3);
    kept++;
    return err;
}

static int reader(void *arg) {
    char byte;
    return (int)coil_read(*(int *)arg, &byte, 1, 0);
}

static int streamer(void *arg) {
    char byte;
    coil_stream *s;
    int err = coil_stream_adopt(&s, *(int *)arg);
    if (err) return err;
    err = (int)coil_stream_read(s, &byte, 1);
    coil_stream_abort(s);
    return err;
}

static int joiner(void *arg) {
    int result;
    return coil_join(*(coil_task *)arg, &result);
}

static coil_mutex held;

static int locker(void *arg) {
    (void)arg;
    return coil_mutex_lock(&held);
}

static int grouper(void *arg) {
    COIL_GROUP(g);
    int err = coil_group_spawn(&g, sleeper, arg);
    return err ? err : coil_group_wait(&g);
}

static int quick(void *arg) {
    (void)arg;
    return 7;
}

static coil_task spawn(const char *name, coil_fn *fn, void *arg) {
    coil_task t = {0};
    coil_spawn_opts o = {.name = name};
    if (coil_spawn_with(&t, &o, fn, arg)) abort();
    return t;
}

static int run(void *arg) {
    static int ends[2], sockets[2];
    static coil_task sleeping;
    (void)arg;
    if (pipe(ends) || socketpair(AF_UNIX, SOCK_STREAM, 0, sockets)) return -1;
    sleeping = spawn("sleeps", sleeper, NULL);
    spawn("reads", reader, &ends[0]);
    spawn("streams", streamer, &sockets[0]);
    spawn("joins", joiner, &sleeping);
    if (coil_mutex_lock(&held)) return -1;
    spawn("locks", locker, NULL);
    spawn("groups", grouper, NULL);
    spawn("ended", quick, NULL);
    for (int i = 0; i < 3; i++)
        coil_yield();
    spawn("new", quick, NULL);
    sleep(2); /* The worker's clock stands still meanwhile; a debugger's doesn't. */
    fixture_stop();
    coil_mutex_unlock(&held);
    return 0;
}

static int run_many(void *arg) {
    for (int n = *(int *)arg; n > 0; n--)
        spawn("", sleeper, NULL);
    for (int i = 0; i < 3; i++)
        coil_yield();
    fixture_stop();
    return 0;
}

int main(int argc, char **argv) {
    int many = argc > 1 ? atoi(argv[1]) : 0;
    return coil_run(many ? run_many : run, &many) < 0;
}
