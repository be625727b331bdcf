/* Asks three servers at once and takes the first answer; the others are told to stop, and have stopped before
 * the race returns. */
#include <coil/coil.h>
#include <errno.h>
#include <stdio.h>

struct question {
    const char *server;
    coil_dur takes; /* stands for the network */
    int fails;
    char answer[32];
};

static int ask(void *arg) {
    struct question *q = arg;
    int err = coil_sleep(q->takes);
    if (err < 0) {
        printf("%s: %s\n", q->server, coil_strerror(err));
        return err;
    }
    if (q->fails) return q->fails;
    snprintf(q->answer, sizeof q->answer, "42, says %s", q->server);
    return 0;
}

static void race(struct question q[3]) {
    coil_job jobs[] = {{ask, &q[0], 0}, {ask, &q[1], 0}, {ask, &q[2], 0}};
    int winner = coil_race(jobs, 3);
    if (winner >= 0) {
        printf("the answer is %s\n", q[winner].answer);
    } else {
        printf("no answer: %s\n", coil_strerror(winner));
    }
}

static int races(void *arg) {
    (void)arg;
    struct question first[] = {{.server = "slow", .takes = coil_sec(10)},
                               {.server = "broken", .takes = coil_ms(1), .fails = -ECONNREFUSED},
                               {.server = "quick", .takes = coil_ms(20)}};
    race(first);

    struct question second[] = {{.server = "down", .takes = coil_ms(1), .fails = -EHOSTUNREACH},
                                {.server = "broken", .takes = coil_ms(20), .fails = -ECONNREFUSED},
                                {.server = "busy", .takes = coil_ms(40), .fails = -EBUSY}};
    race(second);
    return 0;
}

int main(void) {
    int err = coil_run(races, NULL);
    if (err < 0) fprintf(stderr, "race: %s\n", coil_strerror(err));
    return err < 0;
}
