/* What an item costs on its way through a channel, from one task to another: handed over without a buffer,
 * through a buffer, and to a task that selects among several channels. The worker's turns are part of it. */
#include "bench_micro.h"

#include <coil/coil.h>

enum { ITEMS = 1000000, ITEM_MAX = 64, CHANS_MAX = 8 };

struct way {
    struct micro *m;
    unsigned row;
    size_t item_size, capacity;
    size_t chans; /* 0: one, received from without a select */
    coil_chan c[CHANS_MAX];
};

/* To each of the channels in turn. */
static int produce(void *arg) {
    struct way *w = arg;
    char item[ITEM_MAX] = {0};
    size_t chans = w->chans ? w->chans : 1, at = 0;
    uint64_t left = (uint64_t)(w->m->rounds + 1) * ITEMS;
    int err = 0;
    for (; left && !err; left--) {
        err = coil_chan_send(&w->c[at], item);
        if (++at == chans) at = 0;
    }
    return err;
}

static int receive(struct way *w) {
    char item[ITEM_MAX];
    coil_case cases[CHANS_MAX];
    if (w->chans == 0) return coil_chan_recv(&w->c[0], item);
    for (size_t i = 0; i < w->chans; i++)
        cases[i] = coil_on_recv(&w->c[i], item);
    return coil_select(cases, w->chans);
}

static int consume(void *arg) {
    struct way *w = arg;
    int64_t began_ns = 0;
    /* Round 0 is not counted. */
    for (unsigned round = 0; round <= w->m->rounds; round++) {
        for (unsigned i = 0; i < ITEMS; i++) {
            int got = receive(w);
            if (got < 0) return got;
        }
        int64_t now_ns = bench_now();
        if (round > 0) micro_add(w->m, w->row, (double)(now_ns - began_ns) / ITEMS);
        began_ns = now_ns;
    }
    return 0;
}

static int measure(void *arg) {
    struct way *w = arg;
    int err = 0;
    for (size_t i = 0; i < CHANS_MAX && !err; i++)
        err = coil_chan_open(&w->c[i], w->item_size, w->capacity);
    COIL_GROUP(g);
    if (!err) err = coil_group_spawn(&g, produce, w);
    if (!err) err = coil_group_spawn(&g, consume, w);
    int result = coil_group_wait(&g);
    for (size_t i = 0; i < CHANS_MAX; i++)
        coil_chan_destroy(&w->c[i]);
    return err ? err : result;
}

static void row(struct micro *m, const char *what, struct way w) {
    w.m = m;
    w.row = micro_row(m, "ns", "%s, %d items", what, (int)ITEMS);
    int err = coil_run(measure, &w);
    if (err) micro_fail(m, coil_strerror(err), err);
}

int main(int argc, char **argv) {
    struct micro m;
    micro_begin(&m, "chan", "Time of one item through a channel, from task to task.", argc, argv);
    row(&m, "unbuffered, 8 bytes", (struct way){.item_size = 8});
    row(&m, "unbuffered, 64 bytes", (struct way){.item_size = 64});
    row(&m, "buffer of 1, 8 bytes", (struct way){.item_size = 8, .capacity = 1});
    row(&m, "buffer of 64, 8 bytes", (struct way){.item_size = 8, .capacity = 64});
    row(&m, "select of 2, unbuffered, 8 bytes", (struct way){.item_size = 8, .chans = 2});
    row(&m, "select of 8, unbuffered, 8 bytes", (struct way){.item_size = 8, .chans = 8});
    row(&m, "select of 2, buffers of 64, 8 bytes", (struct way){.item_size = 8, .capacity = 64, .chans = 2});
    row(&m, "select of 8, buffers of 64, 8 bytes", (struct way){.item_size = 8, .capacity = 64, .chans = 8});
    micro_end(&m);
    return 0;
}
