#include <coil/coil.h>
#include <stdio.h>

static int child(void *arg) {
    return puts(arg) < 0 ? -1 : 42;
}

static int start(void *arg) {
    (void)arg;
    coil_task t;
    int result = 0;
    int err = coil_spawn(&t, child, (char *)"hello from a task");
    if (err < 0) return err;
    err = coil_join(t, &result);
    return err < 0 ? err : result;
}

int main(void) {
    return coil_run(start, NULL) == 42 ? 0 : 1;
}
