/* Computes three factorials side by side, with a rest in each step, and gathers their results. */
#include <coil/coil.h>
#include <stdio.h>

struct factorial {
    const char *name;
    int n;
    int result; /* what it has found */
};

static int factorial(void *arg) {
    struct factorial *f = arg;
    f->result = 1;
    for (int i = 2; i <= f->n; i++) {
        printf("Task %s: Compute factorial(%d), currently i=%d...\n", f->name, f->n, i);
        int err = coil_sleep(coil_ms(100));
        if (err < 0) return err;
        f->result *= i;
    }
    printf("Task %s: factorial(%d) = %d\n", f->name, f->n, f->result);
    return 0;
}

static int without_result(void *arg) {
    (void)arg;
    puts("this is a void value");
    return 0;
}

/* If one of them failed, the others would be cancelled, and it would be the result of gather. */
static int together(void *arg) {
    (void)arg;
    struct factorial a = {"A", 2, 0}, b = {"B", 3, 0}, c = {"C", 4, 0};
    coil_job jobs[] = {{factorial, &a, 0}, {factorial, &b, 0}, {factorial, &c, 0}, {without_result, NULL, 0}};
    int err = coil_gather(jobs, 4);
    if (err < 0) return err;
    printf("%d, %d, %d\n", a.result, b.result, c.result);
    return 0;
}

int main(void) {
    int err = coil_run(together, NULL);
    if (err < 0) fprintf(stderr, "gather: %s\n", coil_strerror(err));
    return err < 0;
}
