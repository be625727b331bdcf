/* Channels: handing over, buffers, close, cancel and limits, and who may use one. */
#include "tasks.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

static void run(coil_fn *fn) {
    cr_assert_eq(coil_run(fn, NULL), 0);
}

/* A repeatable choice below n. */
static uint32_t chance(uint32_t n) {
    static uint64_t state = 12345;
    state = state * UINT64_C(6364136223846793005) + 1442695040888963407;
    return (uint32_t)((state >> 33) % n);
}

/* One task in one call. */
struct call {
    coil_chan *c;
    coil_dur limit; /* zero: none */
    int item, result, next;
    bool done;
};

static int do_call(struct call *k, bool send) {
    coil_scope s = coil_within(k->limit.ns ? k->limit : COIL_FOREVER);
    k->result = send ? coil_chan_send(k->c, &k->item) : coil_chan_recv(k->c, &k->item);
    coil_leave(&s);
    k->done = true;
    k->next = coil_yield();
    return k->result;
}

static int sends(void *arg) {
    return do_call(arg, true);
}

static int receives(void *arg) {
    return do_call(arg, false);
}

/* ---- handing over ---- */

static int unbuffered(void *arg) {
    (void)arg;
    COIL_CHAN(c, int, 0);
    struct call s = {.c = &c, .item = 7};
    coil_task t = spawn(sends, &s);
    coil_yield();
    cr_expect(!s.done, "a sender waits for a receiver");
    int got = 0;
    cr_expect_eq(coil_chan_recv(&c, &got), 1);
    cr_expect_eq(got, 7);
    cr_expect_eq(join(t), 0);

    struct call r = {.c = &c};
    t = spawn(receives, &r);
    coil_yield();
    int item = 8;
    cr_expect_eq(coil_chan_send(&c, &item), 0);
    cr_expect_eq(r.item, 8, "it is in the receiver's memory before that has run");
    cr_expect(!r.done);
    cr_expect_eq(join(t), 1);
    return 0;
}

Test(chan, without_a_buffer_sender_and_receiver_meet) {
    run(unbuffered);
}

static int buffered(void *arg) {
    (void)arg;
    COIL_CHAN(c, int, 3);
    coil_stats before, after;
    coil_stats_get(&before);
    for (int i = 1; i <= 3; i++)
        cr_expect_eq(coil_chan_send(&c, &i), 0);
    coil_stats_get(&after);
    cr_expect_eq(after.resumes, before.resumes, "nobody had to wait");
    struct call s = {.c = &c, .item = 4};
    coil_task t = spawn(sends, &s);
    coil_yield();
    cr_expect(!s.done, "a full one makes the sender wait");
    for (int i = 1, got = 0; i <= 4; i++) {
        cr_expect_eq(coil_chan_recv(&c, &got), 1);
        cr_expect_eq(got, i);
    }
    cr_expect_eq(join(t), 0);
    int got = 0;
    cr_expect_eq(coil_chan_tryrecv(&c, &got), -EAGAIN);
    return 0;
}

Test(chan, a_buffer_holds_as_many_items_as_its_capacity) {
    run(buffered);
}

static int moves_in(void *arg) {
    (void)arg;
    COIL_CHAN(c, int, 1);
    int got = 0, item = 1;
    cr_expect_eq(coil_chan_send(&c, &item), 0);
    struct call s = {.c = &c, .item = 2};
    coil_task t = spawn(sends, &s);
    coil_yield();
    cr_expect_eq(coil_chan_tryrecv(&c, &got), 1);
    cr_expect_eq(got, 1);
    cr_expect_eq(coil_chan_trysend(&c, &item), -EAGAIN, "the waiting sender's item has taken the place");
    coil_cancel(t);
    cr_expect_eq(join(t), 0, "and is sent, though the task was cancelled before it ran");
    cr_expect_eq(coil_chan_tryrecv(&c, &got), 1);
    cr_expect_eq(got, 2);
    return 0;
}

Test(chan, a_receive_from_a_full_buffer_lets_the_first_waiting_sender_in) {
    run(moves_in);
}

static int of_size(size_t size, size_t capacity) {
    unsigned char item[4097], got[4097];
    coil_chan c;
    cr_expect_eq(coil_chan_open(&c, size, capacity), 0);
    int in = 0, out = 0;
    for (int round = 0; round < 50; round++) {
        while (chance(4)) {
            memset(item, in, sizeof item);
            if (coil_chan_trysend(&c, item) < 0) break;
            in++;
        }
        cr_expect_leq(in - out, (int)capacity);
        while (chance(4) && out < in) {
            memset(item, out, size);
            memset(got, 0xee, sizeof got);
            cr_expect_eq(coil_chan_tryrecv(&c, got), 1);
            cr_expect(memcmp(got, item, size) == 0, "%zu bytes", size);
            cr_expect_eq(got[size], 0xee, "not a byte more");
            out++;
        }
    }
    cr_expect_gt(out, (int)capacity, "it went round");
    coil_chan_destroy(&c);
    return 0;
}

static int of_all_sizes(void *arg) {
    static const size_t sizes[] = {1, 2, 3, 4, 7, 8, 9, 16, 24, 100, 4096};
    (void)arg;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        for (size_t capacity = 1; capacity <= 5; capacity++)
            of_size(sizes[i], capacity);
    }
    return 0;
}

Test(chan, items_of_any_size_come_out_as_they_went_in) {
    run(of_all_sizes);
}

static int signals(void *arg) {
    (void)arg;
    coil_chan c;
    for (size_t capacity = 0; capacity <= SIZE_MAX / 2; capacity = capacity ? capacity * 2 : 1) {
        cr_expect_eq(coil_chan_open(&c, 0, capacity), 0);
        cr_expect_eq(coil_chan_tryrecv(&c, NULL), -EAGAIN);
        struct call s = {.c = &c};
        coil_task t = spawn(sends, &s);
        coil_yield();
        cr_expect_eq(s.done, capacity > 0);
        cr_expect_eq(coil_chan_recv(&c, NULL), 1);
        cr_expect_eq(join(t), 0);
        coil_chan_destroy(&c);
    }
    return 0;
}

Test(chan, an_item_size_of_zero_makes_a_channel_of_signals) {
    run(signals);
}

COIL_CHAN(of_the_file, int, 2);
COIL_STATIC_CHAN(of_the_file_alone, char, 0);

static int of_the_block(void) {
    COIL_STATIC_CHAN(c, int, 4);
    int got = 0, item = 5;
    cr_expect_eq(coil_chan_trysend(&c, &item), 0);
    while (coil_chan_tryrecv(&c, &got) == 1 && coil_chan_trysend(&of_the_file, &got) == 0) {
    }
    return got;
}

static int declared(void *arg) {
    char x = 0;
    int got = 0;
    (void)arg;
    COIL_CHAN(
        c, struct { char text[100]; }, 7);
    cr_expect_eq(c.item_size_, 100);
    cr_expect_eq(coil_chan_trysend(&of_the_file_alone, &x), -EAGAIN);
    cr_expect_eq(of_the_block(), 5);
    cr_expect_eq(of_the_block(), 5);
    cr_expect_eq(of_the_block(), 5);
    cr_expect_eq(coil_chan_recv(&of_the_file, &got), 1);
    coil_chan_destroy(&c);
    coil_chan_destroy(&of_the_file_alone);
    return 0;
}

Test(chan, one_can_be_declared_in_a_file_and_in_a_block) {
    run(declared);
}

/* ---- the order ---- */

enum { IN_LINE = 50 };

static int first_come(void *arg) {
    struct call k[IN_LINE];
    coil_task t[IN_LINE];
    (void)arg;
    COIL_CHAN(c, int, 0);
    for (int i = 0; i < IN_LINE; i++) {
        k[i] = (struct call){.c = &c};
        t[i] = spawn(receives, &k[i]);
    }
    coil_yield();
    for (int i = 0; i < IN_LINE; i++)
        cr_expect_eq(coil_chan_trysend(&c, &i), 0);
    for (int i = 0; i < IN_LINE; i++) {
        cr_expect_eq(join(t[i]), 1);
        cr_expect_eq(k[i].item, i);
    }
    for (int i = 0; i < IN_LINE; i++) {
        k[i] = (struct call){.c = &c, .item = i};
        t[i] = spawn(sends, &k[i]);
    }
    coil_yield();
    for (int i = 0, got = 0; i < IN_LINE; i++) {
        cr_expect_eq(coil_chan_tryrecv(&c, &got), 1);
        cr_expect_eq(got, i);
        cr_expect_eq(join(t[i]), 0);
    }
    return 0;
}

Test(chan, who_came_first_is_served_first) {
    run(first_come);
}

struct turns {
    coil_chan *c;
    int others;
    bool over;
};

static int counts_turns(void *arg) {
    struct turns *u = arg;
    for (; !u->over; u->others++)
        coil_yield();
    return 0;
}

static int never_parks(void *arg) {
    (void)arg;
    COIL_CHAN(c, int, 1);
    struct turns u = {.c = &c};
    coil_task t = spawn(counts_turns, &u);
    for (int i = 0, got = 0; i < 1000; i++) {
        cr_expect_eq(coil_chan_send(&c, &i), 0);
        cr_expect_eq(coil_chan_recv(&c, &got), 1);
    }
    coil_chan_close(&c);
    int before = u.others;
    for (int i = 0, got = 0; i < 1000; i++) {
        cr_expect_eq(coil_chan_send(&c, &i), -EPIPE);
        cr_expect_eq(coil_chan_recv(&c, &got), 0);
    }
    cr_expect_geq(before, 2000 / 64 - 1);
    cr_expect_geq(u.others - before, 2000 / 64 - 1);
    u.over = true;
    return join(t);
}

Test(chan, a_task_that_never_has_to_wait_gives_way_all_the_same) {
    run(never_parks);
}

/* ---- close ---- */

static int close_tells(void *arg) {
    (void)arg;
    COIL_CHAN(c, int, 2);
    int got = 0, item = 1;
    cr_expect_eq(coil_chan_send(&c, &item), 0);
    item = 2;
    cr_expect_eq(coil_chan_send(&c, &item), 0);
    struct call k[3];
    coil_task t[3];
    for (int i = 0; i < 3; i++) {
        k[i] = (struct call){.c = &c, .item = 100};
        t[i] = spawn(sends, &k[i]);
    }
    coil_yield();
    coil_chan_close(&c);
    coil_chan_close(&c);
    for (int i = 0; i < 3; i++)
        cr_expect_eq(join(t[i]), -EPIPE);
    cr_expect_eq(coil_chan_send(&c, &item), -EPIPE);
    cr_expect_eq(coil_chan_trysend(&c, &item), -EPIPE);
    cr_expect_eq(coil_chan_recv(&c, &got), 1, "what is in it can still be received");
    cr_expect_eq(got, 1);
    cr_expect_eq(coil_chan_send(&c, &item), -EPIPE, "also where there is room");
    cr_expect_eq(coil_chan_tryrecv(&c, &got), 1);
    cr_expect_eq(got, 2);
    for (int i = 0; i < 3; i++) {
        cr_expect_eq(coil_chan_recv(&c, &got), 0);
        cr_expect_eq(coil_chan_tryrecv(&c, &got), 0);
    }
    cr_expect_eq(got, 2, "untouched");
    return 0;
}

Test(chan, a_closed_one_takes_no_more_and_gives_what_it_has) {
    run(close_tells);
}

static int close_wakes(void *arg) {
    (void)arg;
    for (int capacity = 0; capacity < 2; capacity++) {
        coil_chan c;
        struct call k[3];
        coil_task t[3];
        cr_expect_eq(coil_chan_open(&c, sizeof(int), (size_t)capacity), 0);
        for (int i = 0; i < 3; i++) {
            k[i] = (struct call){.c = &c, .item = 100};
            t[i] = spawn(receives, &k[i]);
        }
        coil_yield();
        coil_chan_close(&c);
        coil_cancel(t[1]);
        for (int i = 0; i < 3; i++) {
            cr_expect_eq(join(t[i]), 0);
            cr_expect_eq(k[i].item, 100, "untouched");
        }
        coil_chan_destroy(&c);
    }
    return 0;
}

Test(chan, close_wakes_waiting_receivers_with_0) {
    run(close_wakes);
}

/* ---- cancel and limits ---- */

static int refused(void *arg) {
    (void)arg;
    COIL_CHAN(c, int, 2);
    int got = 0, item = 1;
    cr_expect_eq(coil_chan_send(&c, &item), 0);
    coil_scope s = coil_within(coil_ns(0));
    cr_expect_eq(coil_chan_send(&c, &item), -ETIME);
    cr_expect_eq(coil_chan_recv(&c, &got), -ETIME);
    cr_expect(coil_leave(&s));
    coil_cancel(coil_self());
    cr_expect_eq(coil_chan_send(&c, &item), -ECANCELED);
    cr_expect_eq(coil_chan_recv(&c, &got), -ECANCELED);
    cr_expect_eq(got, 0);
    cr_expect_eq(coil_chan_tryrecv(&c, &got), 1, "the others are not refused");
    cr_expect_eq(coil_chan_tryrecv(&c, &got), -EAGAIN, "a refused call has done nothing");
    coil_chan_close(&c);
    s = coil_shield(coil_sec(60));
    cr_expect_eq(coil_chan_send(&c, &item), -EPIPE);
    coil_leave(&s);
    cr_expect_eq(coil_chan_send(&c, &item), -ECANCELED, "also on a closed one");
    cr_expect_eq(coil_chan_recv(&c, &got), -ECANCELED);
    return 0;
}

Test(chan, send_and_recv_are_refused_to_the_cancelled_and_late) {
    run(refused);
}

static int success_wins(void *arg) {
    (void)arg;
    COIL_CHAN(c, int, 0);
    struct call r = {.c = &c}, s = {.c = &c, .item = 6};
    coil_task t = spawn(receives, &r);
    coil_yield();
    int item = 5, got = 0;
    cr_expect_eq(coil_chan_trysend(&c, &item), 0);
    coil_cancel(t);
    cr_expect_eq(join(t), 1);
    cr_expect_eq(r.item, 5);
    cr_expect_eq(r.next, -ECANCELED, "the cancel shows at the next call");
    t = spawn(sends, &s);
    coil_yield();
    cr_expect_eq(coil_chan_tryrecv(&c, &got), 1);
    coil_cancel(t);
    cr_expect_eq(join(t), 0);
    cr_expect_eq(got, 6);
    cr_expect_eq(s.next, -ECANCELED);
    return 0;
}

Test(chan, an_item_that_was_handed_over_wins_over_a_cancel) {
    run(success_wins);
}

static int cancelled_first(void *arg) {
    (void)arg;
    COIL_CHAN(c, int, 0);
    struct call k[3] = {{.c = &c, .item = -1}, {.c = &c}, {.c = &c, .item = 3}};
    coil_task r0 = spawn(receives, &k[0]), r1 = spawn(receives, &k[1]);
    coil_yield();
    coil_cancel(r0);
    int item = 9, got = 0;
    cr_expect_eq(coil_chan_trysend(&c, &item), 0);
    cr_expect_eq(coil_chan_trysend(&c, &item), -EAGAIN);
    cr_expect_eq(join(r0), -ECANCELED);
    cr_expect_eq(k[0].item, -1, "untouched");
    cr_expect_eq(join(r1), 1);
    cr_expect_eq(k[1].item, 9, "the next one has it");
    coil_task s = spawn(sends, &k[2]);
    coil_yield();
    coil_cancel(s);
    cr_expect_eq(coil_chan_tryrecv(&c, &got), -EAGAIN, "a cancelled sender's item is not delivered");
    cr_expect_eq(join(s), -ECANCELED);
    return 0;
}

Test(chan, a_cancelled_waiter_has_left_the_line) {
    run(cancelled_first);
}

/* What each outcome is known from: the channel's own word to whoever was on the other side. */
static int one_race(bool send, coil_dur limit) {
    COIL_CHAN(c, int, 0);
    struct call k = {.c = &c, .item = send ? 1 : 0, .limit = limit};
    coil_task t = spawn(send ? sends : receives, &k);
    bool handed = false, cancelled = false;
    int one = 1, got = 0;
    for (int step = 0; step < 6; step++) {
        switch (chance(limit.ns ? 5 : 6)) {
        case 0:
        case 1:
            if (send && !handed) handed = coil_chan_tryrecv(&c, &got) == 1;
            if (!send && !handed) handed = coil_chan_trysend(&c, &one) == 0;
            break;
        case 2:
        case 3:
            coil_yield();
            break;
        case 4:
            if (chance(4) == 0) coil_chan_close(&c);
            break;
        default:
            coil_cancel(t);
            cancelled = true;
        }
    }
    if (!handed && !cancelled && !limit.ns) coil_chan_close(&c);
    int result = join(t);
    if (handed) {
        cr_expect_eq(result, send ? 0 : 1);
        cr_expect_eq(send ? got : k.item, 1);
    } else {
        int shut = send ? -EPIPE : 0;
        cr_expect(result == shut || result == -ECANCELED || result == -ETIME, "%d", result);
        cr_expect(result != -ECANCELED || cancelled);
        cr_expect(result != -ETIME || limit.ns);
        if (!send) cr_expect_eq(k.item, 0);
    }
    cr_expect_neq(coil_chan_tryrecv(&c, &got), 1, "nothing is left");
    return handed ? 0 : result == -ECANCELED ? 1 : result == -ETIME ? 2 : 3;
}

static int races(void *arg) {
    int n[4] = {0}, rounds = task_rounds(10000);
    (void)arg;
    for (int i = 0; i < rounds; i++) {
        n[one_race(i % 2, (coil_dur){0})]++;
        n[one_race(i % 2, coil_ns(1 + chance(3000)))]++;
    }
    cr_expect_eq(n[0] + n[1] + n[2] + n[3], 2 * rounds);
    if (rounds >= 1000)
        cr_expect(n[0] && n[1] && n[2] && n[3], "%d handed over, %d cancelled, %d late, %d closed", n[0],
                  n[1], n[2], n[3]);
    return 0;
}

Test(chan, in_races_of_hand_over_cancel_limit_and_close_there_is_exactly_one_outcome) {
    run(races);
}

/* Cancels from another thread, while items pass. */
struct stranger {
    coil_chan c;
    coil_task victim;
    int received, sent, rounds, outcomes[2];
};

static void *cancels_from_outside(void *arg) {
    coil_cancel(((struct stranger *)arg)->victim);
    return NULL;
}

static int receives_some(void *arg) {
    struct stranger *x = arg;
    for (int got;; x->received++) {
        int r = coil_chan_recv(&x->c, &got);
        if (r != 1) return r;
        cr_expect_eq(got, x->received);
    }
}

static int cancelled_from_outside(void *arg) {
    (void)arg;
    for (int i = check_rounds(500); i; i--) {
        struct stranger x = {0};
        pthread_t p;
        cr_expect_eq(coil_chan_open(&x.c, sizeof(int), chance(3)), 0);
        x.victim = spawn(receives_some, &x);
        pthread_create(&p, NULL, cancels_from_outside, &x);
        for (int err = 0; err != -ETIME;) {
            coil_scope s = coil_within(coil_us(50));
            err = coil_chan_send(&x.c, &x.sent);
            coil_leave(&s);
            if (err == 0) x.sent++;
        }
        cr_expect_eq(join(x.victim), -ECANCELED);
        pthread_join(p, NULL);
        for (int got; coil_chan_tryrecv(&x.c, &got) == 1; x.received++)
            cr_expect_eq(got, x.received);
        cr_expect_eq(x.received, x.sent, "none lost, none doubled");
        coil_chan_destroy(&x.c);
    }
    return 0;
}

static const coil_run_opts others_cancel = {.external_wakes = true};

Test(chan, a_cancel_from_another_thread_loses_no_item) {
    cr_assert_eq(coil_run_with(&others_cancel, cancelled_from_outside, NULL), 0);
}

enum { MANY = 10000 };

static int many_cancelled(void *arg) {
    struct call *k = calloc(MANY, sizeof *k);
    coil_task *t = calloc(MANY, sizeof *t);
    int many = check_on_uml() ? 500 : task_rounds(MANY), served = 0;
    (void)arg;
    COIL_CHAN(c, int, 0);
    for (int i = 0; i < many; i++) {
        k[i] = (struct call){.c = &c};
        t[i] = spawn(receives, &k[i]);
    }
    coil_yield();
    for (int i = 0; i < many; i++) {
        if (i % 10) coil_cancel(t[i]);
    }
    for (int one = 1; coil_chan_trysend(&c, &one) == 0;)
        served++;
    cr_expect_eq(served, (many + 9) / 10, "those that were not cancelled are still in line");
    for (int i = 0; i < many; i++)
        cr_expect_eq(join(t[i]), i % 10 ? -ECANCELED : 1);
    free(k);
    free(t);
    return 0;
}

Test(chan, ten_thousand_that_wait_can_be_cancelled_at_once) {
    run(many_cancelled);
}

/* ---- many to many ---- */

struct crowd {
    coil_chan c;
    int producers, items;
    uint64_t sent, received, sum_in, sum_out;
};

static int produces(void *arg) {
    struct crowd *w = arg;
    int err = 0;
    for (int i = 0; i < w->items && err != -ECANCELED; i++) {
        uint64_t item = ((uint64_t)chance(1 << 30) << 20) + (uint64_t)i;
        coil_scope s = coil_within(chance(8) ? COIL_FOREVER : coil_ns(chance(2000)));
        err = chance(8) ? coil_chan_send(&w->c, &item) : coil_chan_trysend(&w->c, &item);
        coil_leave(&s);
        if (err == 0) {
            w->sent++;
            w->sum_in += item;
        }
        if (chance(10) == 0) coil_yield();
    }
    if (--w->producers == 0) coil_chan_close(&w->c);
    return 0;
}

static int consumes(void *arg) {
    struct crowd *w = arg;
    for (;;) {
        uint64_t item;
        coil_scope s = coil_within(chance(8) ? COIL_FOREVER : coil_ns(chance(2000)));
        int got = chance(8) ? coil_chan_recv(&w->c, &item) : coil_chan_tryrecv(&w->c, &item);
        coil_leave(&s);
        if (got == 1) {
            w->received++;
            w->sum_out += item;
        }
        if (got == 0 || got == -ECANCELED) return 0;
        if (chance(10) == 0 || got == -EAGAIN) coil_yield();
    }
}

static int crowded(void *arg) {
    (void)arg;
    for (size_t capacity = 0; capacity < 4; capacity++) {
        struct crowd w = {.producers = 8, .items = check_rounds(2000)};
        coil_task victim;
        cr_expect_eq(coil_chan_open(&w.c, sizeof(uint64_t), capacity), 0);
        COIL_GROUP(g);
        for (int i = 0; i < 8; i++) {
            cr_expect_eq(coil_group_spawn(&g, produces, &w), 0);
            cr_expect_eq(coil_group_spawn_with(&g, &victim, NULL, consumes, &w), 0);
            if (i % 2) coil_cancel(victim);
        }
        cr_expect_eq(coil_group_wait(&g), 0);
        cr_expect_gt(w.sent, 0u);
        cr_expect_eq(w.sent, w.received);
        cr_expect_eq(w.sum_in, w.sum_out);
        coil_chan_destroy(&w.c);
    }
    return 0;
}

Test(chan, among_many_senders_and_receivers_no_item_is_lost_or_doubled) {
    run(crowded);
}

static int opens_and_destroys(void *arg) {
    (void)arg;
    coil_chan c;
    for (int i = 0; i < 1000; i++) {
        cr_expect_eq(coil_chan_open(&c, 1000, 10), 0);
        cr_expect_eq(coil_chan_send(&c, (const char[1000]){0}), 0);
        coil_chan_destroy(&c);
    }
    return crowded(NULL);
}

Test(chan, nothing_is_left_behind) {
    run(opens_and_destroys);
    int fds = check_fd_count(), maps = check_map_count();
    size_t heap = check_heap_bytes();
    run(opens_and_destroys);
    cr_expect_eq(check_fd_count(), fds, "descriptors");
    cr_expect_leq(check_heap_bytes(), heap + 4096, "heap");
    if (!CHECK_SANITIZED) cr_expect_leq(check_map_count(), maps + 8, "mappings");
}

/* ---- open and destroy ---- */

static int opens_badly(void *arg) {
    coil_chan c;
    (void)arg;
    cr_expect_eq(coil_chan_open(&c, SIZE_MAX / 2, 3), -ENOMEM);
    cr_expect_eq(coil_chan_open(&c, 3, SIZE_MAX / 2), -ENOMEM);
    if (!CHECK_SANITIZED) cr_expect_eq(coil_chan_open(&c, SIZE_MAX / 4, 2), -ENOMEM);
    coil_chan_destroy(&c);
    cr_expect_eq(coil_chan_open(&c, SIZE_MAX, 0), 0, "no buffer, no memory");
    coil_chan_destroy(&c);
    coil_chan_destroy(&c);
    return 0;
}

Test(chan, one_too_large_gives_enomem) {
    run(opens_badly);
}

static int destroys_with_items(void *arg) {
    coil_chan c = {0};
    int item = 1;
    (void)arg;
    coil_chan_destroy(&c);
    cr_expect_eq(coil_chan_open(&c, sizeof(int), 2), 0);
    cr_expect_eq(coil_chan_send(&c, &item), 0);
    coil_chan_destroy(&c);
    cr_expect_eq(coil_chan_open(&c, sizeof(int), 2), 0);
    cr_expect_eq(coil_chan_tryrecv(&c, &item), -EAGAIN, "as new");
    coil_chan_destroy(&c);
    return 0;
}

Test(chan, a_destroyed_one_can_be_opened_anew) {
    run(destroys_with_items);
}

static int destroys_under_a_receiver(void *arg) {
    (void)arg;
    COIL_CHAN(c, int, 1);
    struct call k = {.c = &c};
    spawn(receives, &k);
    coil_yield();
    coil_chan_destroy(&c);
    return 0;
}

static int destroys_under_a_sender(void *arg) {
    (void)arg;
    COIL_CHAN(c, int, 0);
    struct call k = {.c = &c};
    spawn(sends, &k);
    coil_yield();
    coil_chan_destroy(&c);
    return 0;
}

static int sends_on_zero(void *arg) {
    coil_chan c = {0};
    (void)arg;
    return coil_chan_send(&c, arg);
}

static int receives_after_destroy(void *arg) {
    int got;
    (void)arg;
    COIL_CHAN(c, int, 1);
    cr_expect_eq(coil_chan_trysend(&c, &(int){1}), 0);
    coil_chan_destroy(&c);
    return coil_chan_recv(&c, &got);
}

static int closes_after_destroy(void *arg) {
    (void)arg;
    COIL_CHAN(c, int, 1);
    coil_chan_destroy(&c);
    coil_chan_close(&c);
    return 0;
}

static int in_run(void *fn) {
    coil_fn *const *f = fn;
    return coil_run(*f, NULL);
}

static bool stops(coil_fn *fn, const char *message) {
    return check_aborts(in_run, &fn, message);
}

static int sends_outside(void *arg) {
    (void)arg;
    return coil_chan_trysend(&of_the_file, &(int){1});
}

Test(chan, misuse_stops_with_the_name_of_the_call) {
    cr_assert(stops(destroys_under_a_receiver, "coil: coil_chan_destroy: tasks wait on this channel"));
    cr_assert(stops(destroys_under_a_sender, "coil: coil_chan_destroy: tasks wait on this channel"));
    cr_assert(stops(sends_on_zero, "coil: coil_chan_send: this channel is not open"));
    cr_assert(stops(receives_after_destroy, "coil: coil_chan_recv: this channel is not open"));
    cr_assert(stops(closes_after_destroy, "coil: coil_chan_close: this channel is not open"));
    cr_assert(check_aborts(sends_outside, NULL, "coil: coil_chan_trysend: called outside a task"));
}

/* ---- workers ---- */

COIL_STATIC_CHAN(common, int, 2);

static int puts_one(void *arg) {
    (void)arg;
    return coil_chan_send(&common, &(int){4});
}

static int takes_one(void *arg) {
    int got = 0, n = coil_chan_recv(&common, &got);
    (void)arg;
    return n == 1 ? got : -1;
}

static int puts_and_takes(void *arg) {
    int err = puts_one(arg);
    return err ? err : takes_one(arg);
}

static void *runs(void *fn) {
    coil_fn *const *f = fn;
    return (void *)(intptr_t)coil_run(*f, NULL);
}

static int in_another_run(coil_fn *fn) {
    pthread_t p;
    void *result;
    pthread_create(&p, NULL, runs, &fn);
    pthread_join(p, &result);
    return (int)(intptr_t)result;
}

static int lets_another_put(void *arg) {
    return puts_one(arg) ? -1 : in_another_run(puts_one);
}

static int waits_while_another_uses(void *arg) {
    struct call k = {.c = &common};
    (void)arg;
    spawn(receives, &k);
    coil_yield();
    return in_another_run(takes_one);
}

static int lets_another_use(void *arg) {
    cr_expect_eq(puts_and_takes(arg), 4);
    cr_expect_eq(in_another_run(puts_and_takes), 4, "it was idle");
    cr_expect_eq(puts_and_takes(arg), 4);
    return 0;
}

Test(chan, another_worker_may_use_it_when_it_is_idle_or_the_run_has_ended) {
    run(puts_one);
    cr_assert_eq(coil_run(takes_one, NULL), 4, "what is in it outlives the run");
    run(lets_another_use);
}

Test(chan, use_by_another_worker_meanwhile_stops_with_a_message) {
    cr_assert(
        stops(lets_another_put, "coil: coil_chan_send: this channel is in use by tasks of another worker"));
    cr_assert(
        stops(waits_while_another_uses, "coil: coil_chan_recv: this channel is in use by tasks of another"));
}
