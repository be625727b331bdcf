/* Groups. All zero is a group that is not open. It opens with the first call on it: its owner is the current
 * task, which then knows it; waiting for it or leaving its block closes it again, and it may be used anew.
 *
 * A child leaves the group when it ends, before anybody else hears of it. The owner, where it waits, is
 * readied by the last one only; in coil_group_next by the next one.
 *
 * What coil_group_next has not fetched yet is kept in the ended children's own records, so that no result can
 * be lost for want of memory. A group that nobody asks must not collect records for ever: until the owner has
 * asked once, or said that it will, at most UNASKED_MAX are kept; one more, and all go back. A later call is
 * told. */
#include "group.h"

#include <string.h>

enum {
    KEEP_GOING = 1,
    CANCELLED = 2,
    KEEP_RESULTS = 4, /* somebody asks for them, or will */
    DROP_RESULTS = 8, /* nobody will */
    LOST_RESULTS = 16,
    FIRST_WINS = 32, /* a race */
};

enum { UNASKED_MAX = 1024 };

struct coil__group {
    uint64_t check; /* mixed with owner and address; zero: not open */
    struct coil__task *owner;
    struct coil__list children;
    struct coil__list ended;   /* children whose results are kept, in the order in which they ended */
    struct coil__wait *waiter; /* the owner's, while it waits */
    struct coil__group *outer; /* the next in the owner's open_groups */
    int *winner;               /* of a race: where the result of the first to succeed went */
    uint32_t live;             /* children */
    uint32_t kept;             /* in `ended` */
    int result;                /* of the first child that failed; 0: none did */
    uint32_t flags;
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
    coil__list_init(&g->ended);
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

static struct coil__task *take_ended(struct coil__group *g) {
    struct coil__node *n = coil__list_pop(&g->ended);
    if (!n) return NULL;
    g->kept--;
    return CONTAINER_OF(n, struct coil__task, sibling);
}

static void drop_results(struct coil__group *g) {
    for (struct coil__task *t; (t = take_ended(g));)
        coil__task_free(t);
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
    uint32_t keep = g->flags & (KEEP_GOING | KEEP_RESULTS);
    drop_results(g);
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

/* Its handle is stale from now on, whether the record is kept or not. */
static bool keep_result(struct coil__group *g, struct coil__task *t) {
    if (g->flags & DROP_RESULTS) return false;
    if (g->kept == UNASKED_MAX && !(g->flags & KEEP_RESULTS)) {
        drop_results(g);
        g->flags |= LOST_RESULTS;
    }
    if (g->flags & LOST_RESULTS && !(g->flags & KEEP_RESULTS)) return false;
    t->gen++;
    coil__list_push(&g->ended, &t->sibling);
    g->kept++;
    return true;
}

/* What its result means for the others. */
static void judge(struct coil__group *g, const struct coil__task *t) {
    bool failed = t->result < 0 && !(t->result == -ECANCELED && t->cancelled);
    if (failed) {
        if (!g->result) g->result = t->result;
        if (!(g->flags & KEEP_GOING)) cancel_children(g);
    } else if (t->result >= 0 && g->flags & FIRST_WINS && !g->winner) {
        g->winner = t->result_to;
        cancel_children(g);
    }
}

static bool child_ended(struct coil__task *t) {
    struct coil__group *g = t->group;
    check_open(g, "coil_group_spawn");
    coil__node_unlink(&t->sibling);
    g->live--;
    if (t->result_to) *t->result_to = t->result;
    judge(g, t);
    bool kept = keep_result(g, t);
    struct coil__wait *w = g->waiter;
    /* Nothing is kept for a waiter that waits for all. */
    if (w && (kept || g->live == 0)) {
        g->waiter = NULL;
        coil__ready(w, 0);
    }
    return kept;
}

static int spawn(coil_group *group, coil_task *out, const coil_spawn_opts *o, coil_fn *fn, void *arg,
                 int *result_to, const void *site) {
    struct coil__task *child, *t = coil__current("coil_group_spawn");
    if (out) *out = (coil_task){0};
    struct coil__group *g = for_family(group, t, "coil_group_spawn");
    if (g->flags & CANCELLED) return -ESHUTDOWN;
    int err = coil__task_new(t->sched, o, fn, arg, site, &child);
    if (err) return err;
    child->detached = true;
    child->group = g;
    child->ended = child_ended;
    child->result_to = result_to;
    coil__list_push(&g->children, &child->sibling);
    g->live++;
    if (out) *out = coil__task_handle(child);
    return 0;
}

int coil_group_spawn(coil_group *group, coil_fn *fn, void *arg) {
    return spawn(group, NULL, NULL, fn, arg, NULL, __builtin_return_address(0));
}

int coil_group_spawn_with(coil_group *group, coil_task *out, const coil_spawn_opts *o, coil_fn *fn,
                          void *arg) {
    return spawn(group, out, o, fn, arg, NULL, __builtin_return_address(0));
}

int coil__group_spawn(coil_group *group, coil_fn *fn, void *arg, int *result_to, const void *site) {
    return spawn(group, NULL, NULL, fn, arg, result_to, site);
}

void coil_group_cancel(coil_group *group) {
    cancel_children(for_family(group, coil__current("coil_group_cancel"), "coil_group_cancel"));
}

void coil_group_keep_going(coil_group *group) {
    for_owner(group, coil__current("coil_group_keep_going"), "coil_group_keep_going")->flags |= KEEP_GOING;
}

void coil_group_keep_results(coil_group *group) {
    struct coil__task *t = coil__current("coil_group_keep_results");
    for_owner(group, t, "coil_group_keep_results")->flags |= KEEP_RESULTS;
}

void coil__group_drop_results(coil_group *group) {
    inner(group)->flags |= DROP_RESULTS;
}

void coil__group_first_wins(coil_group *group) {
    inner(group)->flags |= FIRST_WINS | KEEP_GOING;
}

/* ---- waiting ---- */

struct group_wait {
    struct coil__wait wait;
    struct coil__group *g;
};

/* Those that have ended have left the list. */
static const struct coil__task *blocker(const struct coil__wait *w, const struct coil__task *after) {
    const struct coil__list *l = &CONTAINER_OF(w, struct group_wait, wait)->g->children;
    const struct coil__node *n = after ? after->sibling.next : l->head.next;
    return n == &l->head ? NULL : CONTAINER_OF(n, struct coil__task, sibling);
}

static struct group_wait wait_on(struct coil__group *g, const char *what,
                                 void (*abort)(struct coil__wait *w)) {
    return (struct group_wait){.wait = {.abort = abort, .what = what, .fd = -1, .on = g, .blocker = blocker},
                               .g = g};
}

/* The owner's cancel or deadline goes on to the children; the wait itself ends with the last of them. */
static void pass_on(struct coil__wait *w) {
    cancel_children(CONTAINER_OF(w, struct group_wait, wait)->g);
}

/* The owner's cancel or deadline ends the wait, and leaves the children alone. */
static void walk_off(struct coil__wait *w) {
    CONTAINER_OF(w, struct group_wait, wait)->g->waiter = NULL;
    coil__ready(w, 0);
}

/* Waits for all children. Whether a cancel or a deadline of the owner's has met it: what it makes of that is
 * its own affair, and only a call that ends with -ETIME tells the scope so. */
static bool wait_for_children(struct coil__group *g, struct coil__task *t, const char *what) {
    struct group_wait w = wait_on(g, what, pass_on);
    g->flags |= DROP_RESULTS;
    drop_results(g);
    if (g->live == 0) return false;
    g->waiter = &w.wait;
    if (t->stop || t->sched->now_ns >= t->limit_ns) {
        cancel_children(g);
        coil__park_always(t, &w.wait);
        return true;
    }
    coil__park_until(t, &w.wait, t->limit_ns);
    return w.wait.interrupted;
}

/* Waits for all children and closes the group. */
static struct coil__outcome finish(struct coil__group *g, struct coil__task *t, const char *what,
                                   const char *call) {
    struct coil__outcome out = {0};
    bool parks = g->live > 0;
    if (g->check) {
        out.met = wait_for_children(g, t, what);
        out.failure = g->result;
        out.winner = g->winner;
        close_group(g, call);
    }
    if (!parks) coil__charge(t);
    return out;
}

int coil_group_wait(coil_group *group) {
    struct coil__task *t = coil__current("coil_group_wait");
    struct coil__group *g = for_owner(group, t, "coil_group_wait");
    struct coil__outcome out = finish(g, t, "group", "coil_group_wait");
    return !out.failure && out.met ? coil__stop_error(t) : out.failure;
}

struct coil__outcome coil__group_finish(coil_group *group, struct coil__task *t, const char *what) {
    return finish(inner(group), t, what, "coil_gather");
}

void coil_group_close_(coil_group *group) {
    struct coil__task *t = coil__current("coil_group_close");
    struct coil__group *g = for_owner(group, t, "coil_group_close");
    if (!g->check) return;
    cancel_children(g);
    g->flags |= DROP_RESULTS;
    if (g->live) {
        struct group_wait w = wait_on(g, "group", NULL);
        g->waiter = &w.wait;
        coil__park_always(t, &w.wait);
    }
    close_group(g, "coil_group_close");
}

/* One result that is there, or 0 where no child is left. The caller has seen that there is either. */
static int fetch(struct coil__group *g, void **arg, int *result) {
    struct coil__task *child = take_ended(g);
    if (!child) return 0;
    if (arg) *arg = child->arg;
    if (result) *result = child->result;
    coil__task_free(child);
    return 1;
}

int coil_group_next(coil_group *group, void **arg, int *result) {
    struct coil__task *t = coil__current("coil_group_next");
    int err = coil__admit(t);
    struct coil__group *g = for_owner(group, t, "coil_group_next");
    g->flags |= KEEP_RESULTS;
    if (err) return err;
    if (g->flags & LOST_RESULTS) {
        g->flags &= ~(uint32_t)LOST_RESULTS;
        err = -EOVERFLOW;
    } else if (g->check && !g->kept && g->live) {
        struct group_wait w = wait_on(g, "group", walk_off);
        g->waiter = &w.wait;
        coil__park_until(t, &w.wait, t->limit_ns);
        return w.wait.interrupted ? coil__stop_error(t) : fetch(g, arg, result);
    }
    coil__charge(t);
    return err ? err : g->check ? fetch(g, arg, result) : 0;
}

uint32_t coil__group_drain(coil_group *group, int64_t until_ns) {
    struct coil__task *t = coil__current("coil_serve");
    struct coil__group *g = for_owner(group, t, "coil_serve");
    if (!g->check || g->live == 0) return 0;
    struct group_wait w = wait_on(g, "group", walk_off);
    g->waiter = &w.wait;
    coil__park_until(t, &w.wait, until_ns);
    return g->live;
}
