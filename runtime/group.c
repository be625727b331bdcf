/* Groups. All zero is a group that is not open. It opens with the first call on it: its owner is the current
 * task, which then knows it; waiting for it or leaving its block closes it again, and it may be used anew.
 *
 * A child leaves the group when it ends, before anybody else hears of it. The owner, where it waits, is
 * readied by the last one only. */
#include "group.h"

#include <string.h>

enum { KEEP_GOING = 1, CANCELLED = 2 };

struct coil__group {
    uint64_t check; /* mixed with owner and address; zero: not open */
    struct coil__task *owner;
    struct coil__list children;
    struct coil__wait *waiter; /* the owner's, while it waits */
    struct coil__group *outer; /* the next in the owner's open_groups */
    uint32_t live;             /* children */
    int result;                /* of the first child that failed; 0: none did */
    uint64_t flags;
};

_Static_assert(sizeof(struct coil__group) == sizeof(coil_group), "a group fits its public type");

static struct coil__group *inner(coil_group *g) {
    return (struct coil__group *)(void *)g;
}

const struct coil__task *coil__group_owner(const struct coil__group *g) {
    return g->owner;
}

/* Of addresses alone: in a group that was overwritten, `owner` points to anywhere. */
static uint64_t check_word(const struct coil__group *g, const struct coil__task *owner) {
    uint64_t v = (uint64_t)(uintptr_t)owner << 16 ^ (uint64_t)(uintptr_t)g;
    return (v + 0xc011) * UINT64_C(0x9e3779b97f4a7c15) | 1;
}

static void check_open(const struct coil__group *g, const char *call) {
    if (UNLIKELY(g->check != check_word(g, g->owner))) {
        MISUSE(call, "this is no group: it was copied, overwritten, or not all zero at first");
    }
}

/* Where the innermost open one is no longer a group, its block was jumped out of, and this may be its memory.
 */
static void open_group(struct coil__group *g, struct coil__task *t, const char *call) {
    const struct coil__group *outer = t->open_groups;
    if (UNLIKELY(outer && outer->check != check_word(outer, t)))
        MISUSE(call, "a group was jumped past, not left");
    g->owner = t;
    g->check = check_word(g, t);
    coil__list_init(&g->children);
    g->outer = t->open_groups;
    t->open_groups = g;
}

/* The group, open; for calls that its owner and its children may make. */
static struct coil__group *for_family(coil_group *group, struct coil__task *t, const char *call) {
    struct coil__group *g = inner(group);
    if (!g->check) open_group(g, t, call);
    check_open(g, call);
    if (g->owner != t && t->group != g)
        MISUSE(call, "called by a task that is neither the group's owner nor its child");
    return g;
}

/* The group, open or not; for calls that only its owner may make. */
static struct coil__group *for_owner(coil_group *group, struct coil__task *t, const char *call) {
    struct coil__group *g = inner(group);
    if (!g->check) return g;
    check_open(g, call);
    if (g->owner != t) MISUSE(call, "called by a task that is not the group's owner");
    return g;
}

/* Takes it off its owner's list. Finding one on the way that is no longer a group means that its block was
 * jumped out of. */
static void close_group(struct coil__group *g, const char *call) {
    CHECK(g->live == 0);
    struct coil__group **at = &g->owner->open_groups;
    for (; *at != g; at = &(*at)->outer) {
        if (!*at || (*at)->check != check_word(*at, g->owner))
            MISUSE(call, "a group was jumped past, not left");
    }
    *at = g->outer;
    uint64_t keep = g->flags & KEEP_GOING;
    memset(g, 0, sizeof *g);
    g->flags = keep;
}

static void cancel_children(struct coil__group *g) {
    if (g->flags & CANCELLED) return;
    g->flags |= CANCELLED;
    /* A cancel only marks and asks: no child can end, and leave the list, before this task parks. */
    LIST_EACH(n, &g->children) {
        coil__cancel(CONTAINER_OF(n, struct coil__task, sibling));
    }
}

static void child_ended(struct coil__task *t) {
    struct coil__group *g = t->group;
    check_open(g, "coil_group_spawn");
    coil__node_unlink(&t->sibling);
    g->live--;
    bool failed = t->result < 0 && !(t->result == -ECANCELED && t->cancelled);
    if (failed) {
        if (!g->result) g->result = t->result;
        if (!(g->flags & KEEP_GOING)) cancel_children(g);
    }
    if (g->live == 0 && g->waiter) {
        struct coil__wait *w = g->waiter;
        g->waiter = NULL;
        coil__ready(w, 0);
    }
}

static int spawn(coil_group *group, coil_task *out, const coil_spawn_opts *o, coil_fn *fn, void *arg,
                 const void *site) {
    struct coil__task *child, *t = coil__current("coil_group_spawn");
    if (out) *out = (coil_task){0};
    struct coil__group *g = for_family(group, t, "coil_group_spawn");
    if (g->flags & CANCELLED) return -ESHUTDOWN;
    int err = coil__task_new(t->sched, o, fn, arg, site, &child);
    if (err) return err;
    child->detached = true;
    child->group = g;
    child->ended = child_ended;
    coil__list_push(&g->children, &child->sibling);
    g->live++;
    if (out) *out = coil__task_handle(child);
    return 0;
}

int coil_group_spawn(coil_group *group, coil_fn *fn, void *arg) {
    return spawn(group, NULL, NULL, fn, arg, __builtin_return_address(0));
}

int coil_group_spawn_with(coil_group *group, coil_task *out, const coil_spawn_opts *o, coil_fn *fn,
                          void *arg) {
    return spawn(group, out, o, fn, arg, __builtin_return_address(0));
}

void coil_group_cancel(coil_group *group) {
    cancel_children(for_family(group, coil__current("coil_group_cancel"), "coil_group_cancel"));
}

void coil_group_keep_going(coil_group *group) {
    for_owner(group, coil__current("coil_group_keep_going"), "coil_group_keep_going")->flags |= KEEP_GOING;
}

/* ---- waiting ---- */

struct group_wait {
    struct coil__wait wait;
    struct coil__group *g;
};

/* The owner's cancel or deadline goes on to the children; the wait itself ends with the last of them. */
static void wait_abort(struct coil__wait *w) {
    cancel_children(CONTAINER_OF(w, struct group_wait, wait)->g);
}

/* Waits for all children; the owner's own error where a cancel or a deadline met it meanwhile, else 0. */
static int wait_for_children(struct coil__group *g, struct coil__task *t) {
    struct group_wait w = {.wait = {.abort = wait_abort, .what = "group", .fd = -1}, .g = g};
    if (g->live == 0) return 0;
    g->waiter = &w.wait;
    if (t->stop || t->sched->now_ns >= t->limit_ns) {
        cancel_children(g);
        coil__park_always(t, &w.wait);
        return coil__stop_error(t);
    }
    coil__park_until(t, &w.wait, t->limit_ns);
    return w.wait.interrupted ? coil__stop_error(t) : 0;
}

int coil_group_wait(coil_group *group) {
    struct coil__task *t = coil__current("coil_group_wait");
    struct coil__group *g = for_owner(group, t, "coil_group_wait");
    if (!g->check) return 0;
    int own = wait_for_children(g, t);
    int result = g->result;
    close_group(g, "coil_group_wait");
    return result ? result : own;
}

void coil_group_close_(coil_group *group) {
    struct coil__task *t = coil__current("coil_group_close");
    struct coil__group *g = for_owner(group, t, "coil_group_close");
    if (!g->check) return;
    cancel_children(g);
    if (g->live) {
        struct coil__wait w = {.what = "group", .fd = -1};
        g->waiter = &w;
        coil__park_always(t, &w);
    }
    close_group(g, "coil_group_close");
}

static void drain_abort(struct coil__wait *w) {
    CONTAINER_OF(w, struct group_wait, wait)->g->waiter = NULL;
    coil__ready(w, 0);
}

uint32_t coil__group_drain(coil_group *group, int64_t until_ns) {
    struct coil__task *t = coil__current("coil_serve");
    struct coil__group *g = for_owner(group, t, "coil_serve");
    if (!g->check || g->live == 0) return 0;
    struct group_wait w = {.wait = {.abort = drain_abort, .what = "group", .fd = -1}, .g = g};
    g->waiter = &w.wait;
    coil__park_until(t, &w.wait, until_ns);
    return g->live;
}
