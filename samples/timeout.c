/* Limits in time: for one function, for the rest of a block, and inside one another. */
#include <coil/coil.h>
#include <errno.h>
#include <stdio.h>

/* Knows nothing of limits: its calls return -ETIME when one has passed, and it passes that on. */
static int work(void *arg) {
    const coil_dur *d = arg;
    return coil_sleep(*d);
}

static void one_function(void) {
    coil_dur quick = coil_ms(1), slow = coil_sec(10);
    int err = coil_wait_for(coil_sec(10), work, &quick);
    printf("quick work: %s\n", err == -ETIME ? "too slow" : "done");
    err = coil_wait_for(coil_ms(20), work, &slow);
    printf("slow work: %s\n", err == -ETIME ? "too slow" : "done");
}

/* All steps together have a second, however the function is left. */
static int steps(int n) {
    COIL_WITHIN(coil_sec(1));
    for (int i = 1; i <= n; i++) {
        int err = coil_sleep(i < 4 ? coil_ms(1) : coil_sec(10));
        if (err < 0) return err;
        printf("step %d\n", i);
    }
    return 0;
}

static void rest_of_a_block(void) {
    int err = steps(3);
    printf("three steps: %s\n", err == -ETIME ? "too slow" : "done");
    err = steps(4);
    printf("four steps: %s\n", err == -ETIME ? "too slow" : "done");
}

/* The tighter of two limits holds, and leaving a scope tells whether it was that one. */
static void inside_one_another(coil_dur outer_limit, coil_dur inner_limit) {
    coil_scope outer = coil_within(outer_limit);
    coil_scope inner = coil_within(inner_limit);
    int err = coil_sleep(coil_sec(10));
    bool was_inner = coil_leave(&inner);
    bool was_outer = coil_leave(&outer);
    printf("%s: %s\n", coil_strerror(err),
           was_inner   ? "the inner limit"
           : was_outer ? "the outer limit"
                       : "?");
}

/* A task that is out of time can still take its leave politely, within a time of its own. */
static void polite_end(void) {
    COIL_WITHIN(coil_ms(10));
    if (coil_sleep(coil_sec(10)) == -ETIME) {
        COIL_SHIELD(coil_sec(5));
        if (coil_sleep(coil_ms(1)) == 0) puts("out of time, but it has said goodbye");
    }
}

static int limits(void *arg) {
    (void)arg;
    one_function();
    rest_of_a_block();
    inside_one_another(coil_sec(10), coil_ms(20));
    inside_one_another(coil_ms(20), coil_sec(10));
    polite_end();
    return 0;
}

int main(void) {
    int err = coil_run(limits, NULL);
    if (err < 0) fprintf(stderr, "timeout: %s\n", coil_strerror(err));
    return err < 0;
}
