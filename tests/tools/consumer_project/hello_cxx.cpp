#include <coil/coil.h>
#include <cstdio>

static int child(void *arg) {
    return std::puts(static_cast<const char *>(arg)) < 0 ? -1 : 42;
}

static int start(void *arg) {
    coil_task t;
    int result = 0;
    int err = coil_spawn(&t, child, arg);
    if (err < 0) return err;
    err = coil_join(t, &result);
    return err < 0 ? err : result;
}

int main() {
    static char text[] = "hello from a task";
    return coil_run(start, text) == 42 ? 0 : 1;
}
