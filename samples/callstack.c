/* Prints the call stack at the bottom of a recursion, and who waits for it. */
#include <coil/coil.h>
#include <stdio.h>

/* One frame per call: not made into a loop, which `volatile` prevents, nor put into its caller. */
static __attribute__((noinline)) int factorial(int n) {
    if (n <= 1) {
        coil_dump_callstack(stdout);
        return 1;
    }
    volatile int below = factorial(n - 1);
    return below * n;
}

static int computes(void *arg) {
    return factorial(*(int *)arg);
}

static int run(void *arg) {
    coil_task t;
    int result, err = coil_spawn(&t, computes, arg);
    if (!err) err = coil_join(t, &result);
    if (err) return err;
    printf("run result: %d\n", result);
    return 0;
}

int main(void) {
    int n = 10;
    int err = coil_run(run, &n);
    if (err < 0) fprintf(stderr, "callstack: %s\n", coil_strerror(err));
    return err < 0;
}
