/* Scopes: limits and shields of the current task.
 *
 * A scope is a value, so nothing can point to it. The task knows how many are open (depth), which of them
 * owns the limit that holds (limit_owner) and whether a call has failed because of it (fired); each scope
 * keeps what it replaced, and leaving puts that back. A shield replaces the limit; inside another shield the
 * outer one's own limit goes on holding, and where that one strikes inside the inner one, inherit_fired
 * remembers it until the outer one is left. */
#include "task.h"

enum { IS_SHIELD = 1, WAS_FIRED = 2, WAS_SHIELDED = 4, FLAG_BITS = 4 };
enum { DEPTH_BITS = 20, DEPTH_MAX = (1 << DEPTH_BITS) - 1 };

/* The words of coil_scope; "was" is what it replaced. Each is written once and read back as a whole, in the
 * caller's memory: parts of a word, or a copy in wider pieces, would wait for the stores before them. */
enum {
    LIMIT_WAS,  /* ns */
    SHIELD_WAS, /* ns; a shield's */
    PLACES,     /* the shield's owner as it was, the owner as it was, depth, flags: from high bits to low */
    SEAL,       /* mixed from the others and the task; zero once left */
};

static uint32_t depth_of(const coil_scope *s) {
    return s->opaque[PLACES] >> FLAG_BITS & DEPTH_MAX;
}

static uint32_t owner_was(const coil_scope *s) {
    return s->opaque[PLACES] >> (FLAG_BITS + DEPTH_BITS) & DEPTH_MAX;
}

static uint32_t shield_owner_was(const coil_scope *s) {
    return s->opaque[PLACES] >> (FLAG_BITS + 2 * DEPTH_BITS) & DEPTH_MAX;
}

static uint64_t seal(const struct coil__task *t, uint64_t limit_was, uint64_t places) {
    uint64_t v = t->gen ^ ((uint64_t)t->slot << 40) ^ (places << 8) ^ limit_was;
    return (v + 0xc011) * UINT64_C(0x9e3779b97f4a7c15) | 1;
}

static inline void enter(coil_scope *s, struct coil__task *t, const char *call, unsigned flags) {
    if (UNLIKELY(t->depth == DEPTH_MAX))
        MISUSE(call, "more than %d scopes inside one another", (int)DEPTH_MAX);
    flags |= (t->fired ? WAS_FIRED : 0) | (t->shielded ? WAS_SHIELDED : 0);
    uint64_t owners = (uint64_t)t->shield_owner << DEPTH_BITS | t->limit_owner;
    uint64_t places = (owners << DEPTH_BITS | ++t->depth) << FLAG_BITS | flags;
    uint64_t limit_was = (uint64_t)t->limit_ns;
    s->opaque[LIMIT_WAS] = limit_was;
    s->opaque[SHIELD_WAS] = (uint64_t)t->shield_ns;
    s->opaque[PLACES] = places;
    s->opaque[SEAL] = seal(t, limit_was, places);
}

static inline void set_limit(struct coil__task *t, int64_t limit_ns, uint32_t owner) {
    t->limit_ns = limit_ns;
    t->limit_owner = owner;
    t->fired = false;
}

static inline coil_scope narrow(struct coil__task *t, const char *call, int64_t limit_ns) {
    coil_scope s;
    enter(&s, t, call, 0);
    if (limit_ns < t->limit_ns) set_limit(t, limit_ns, t->depth);
    return s;
}

coil_scope coil_until(coil_time at) {
    return narrow(coil__current("coil_until"), "coil_until", at.ns);
}

/* The clock is read afresh: a limit that began at the start of a long turn would be too short. */
coil_scope coil_within(coil_dur d) {
    struct coil__task *t = coil__current("coil_within");
    int64_t now_ns = coil__clock(t->sched);
    return narrow(t, "coil_within", coil__add_ns(now_ns, MAX(d.ns, 0)));
}

coil_scope coil_shield(coil_dur grace) {
    struct coil__task *t = coil__current("coil_shield");
    coil_scope s;
    enter(&s, t, "coil_shield", IS_SHIELD);
    int64_t limit_ns = coil__add_ns(coil__clock(t->sched), MAX(grace.ns, 0));
    if (!t->shielded || limit_ns < t->shield_ns) {
        t->shield_ns = limit_ns;
        t->shield_owner = t->depth;
    }
    t->shielded = true;
    t->stop = false;
    set_limit(t, t->shield_ns, t->shield_owner);
    return s;
}

static inline void restore_limit(struct coil__task *t, const coil_scope *s) {
    t->limit_ns = (int64_t)s->opaque[LIMIT_WAS];
    t->limit_owner = owner_was(s);
    t->fired = s->opaque[PLACES] & WAS_FIRED;
}

static void leave_shield(struct coil__task *t, const coil_scope *s) {
    if (t->fired && t->limit_owner < t->depth) t->inherit_fired = t->limit_owner;
    restore_limit(t, s);
    t->shield_ns = (int64_t)s->opaque[SHIELD_WAS];
    t->shield_owner = shield_owner_was(s);
    t->shielded = s->opaque[PLACES] & WAS_SHIELDED;
    t->stop = t->cancelled && !t->shielded;
}

bool coil_leave(coil_scope *s) {
    struct coil__task *t = coil__current("coil_leave");
    uint64_t places = s->opaque[PLACES];
    if (UNLIKELY(s->opaque[SEAL] != seal(t, s->opaque[LIMIT_WAS], places))) {
        MISUSE("coil_leave",
               "this is no open scope of the current task (left twice, jumped into, or another task's)");
    }
    uint32_t depth = t->depth;
    if (UNLIKELY(depth_of(s) != depth))
        MISUSE("coil_leave", "scopes are left in reverse order; one was jumped past");
    bool owns = t->limit_owner == depth, inherits = t->inherit_fired == depth;
    bool struck = (owns && t->fired) || inherits;
    if (UNLIKELY(places & IS_SHIELD)) {
        leave_shield(t, s);
    } else if (owns) {
        restore_limit(t, s);
    }
    if (UNLIKELY(t->inherit_fired == depth)) t->inherit_fired = 0;
    t->depth = depth - 1;
    *s = (coil_scope){{0}};
    return struck;
}

void coil_leave_(coil_scope *scope) {
    coil_leave(scope);
}
