/* Says hello and, a second later, world. */
#include <coil/coil.h>
#include <stdio.h>

static int hello(void *arg) {
    (void)arg;
    puts("hello");
    fflush(stdout);
    int err = coil_sleep(coil_sec(1));
    if (err < 0) return err;
    puts("world");
    return 0;
}

int main(void) {
    int err = coil_run(hello, NULL);
    if (err < 0) fprintf(stderr, "hello: %s\n", coil_strerror(err));
    return err < 0;
}
