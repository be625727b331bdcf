/* Two producers and two consumers share a channel. It holds up to two items: where there is no room, the
 * producers wait. When all of them are done, the channel is closed, and the consumers end once it is empty.
 */
#include <coil/coil.h>
#include <stdio.h>

struct item {
    const char *maker;
    int number;
};

struct worker {
    const char *name;
    coil_chan *items;
};

static int produce(void *arg) {
    const struct worker *me = arg;
    for (int i = 1; i <= 4; i++) {
        struct item item = {me->name, i};
        int err = coil_chan_send(me->items, &item);
        if (err < 0) return err;
        printf("%s: item %d is on its way\n", item.maker, i);
    }
    return 0;
}

/* Closes also when a producer has failed, so that the consumers end in any case. */
static int produce_all(void *items) {
    struct worker anna = {"Anna", items}, bert = {"Bert", items};
    COIL_GROUP(producers);
    int err = coil_group_spawn(&producers, produce, &anna);
    if (!err) err = coil_group_spawn(&producers, produce, &bert);
    if (err) coil_group_cancel(&producers); /* no half of them */
    int result = coil_group_wait(&producers);
    coil_chan_close(items);
    return err ? err : result;
}

static int consume(void *arg) {
    const struct worker *me = arg;
    struct item item;
    int got, count = 0;
    while ((got = coil_chan_recv(me->items, &item)) == 1) {
        printf("%s: has item %d of %s\n", me->name, item.number, item.maker);
        count++;
    }
    printf("%s: done, %d items\n", me->name, count);
    return got;
}

static int run(void *arg) {
    (void)arg;
    COIL_CHAN(items, struct item,
              2); /* with its buffer, in this block; before the group, whose tasks use it */
    struct worker cleo = {"Cleo", &items}, dora = {"Dora", &items};
    COIL_GROUP(g);
    int err = coil_group_spawn(&g, produce_all, &items);
    if (!err) err = coil_group_spawn(&g, consume, &cleo);
    if (!err) err = coil_group_spawn(&g, consume, &dora);
    if (err) return err; /* leaving the block cancels those that have begun, and waits for them */
    return coil_group_wait(&g);
}

int main(void) {
    int err = coil_run(run, NULL);
    if (err < 0) fprintf(stderr, "producer_consumer: %s\n", coil_strerror(err));
    return err < 0;
}
