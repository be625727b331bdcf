/* Scopes: limits and shields of the current task.
 *
 * A scope is a value, so nothing can point to it. The task knows how many are open (depth), which of them
 * owns the limit that holds (limit_owner) and whether a call has failed because of it (fired); each scope
 * keeps what it replaced, and leaving puts that back. A shield replaces the limit; inside another shield the
 * outer one's own limit goes on holding, and where that one strikes inside the inner one, inherit_fired
 * remembers it until the outer one is left. */
#include "task.h"

#include <string.h>

enum { IS_SHIELD = 1, WAS_FIRED = 2, WAS_SHIELDED = 4 };
enum { DEPTH_BITS = 20, DEPTH_MAX = (1 << DEPTH_BITS) - 1 };

/* What the words of coil_scope hold; "was" is what it replaced. */
struct scope {
    int64_t limit_was_ns;
    int64_t shield_was_ns;
    uint64_t depth : DEPTH_BITS, owner_was : DEPTH_BITS, shield_owner_was : DEPTH_BITS, flags : 4;
    uint64_t check; /* mixed with the task; zero once left */
};

_Static_assert(sizeof(struct scope) == sizeof(coil_scope), "a scope fits its public type");

static uint64_t check_word(const struct coil__task *t, const struct scope *s) {
    uint64_t v = t->gen ^ ((uint64_t)t->slot << 40) ^ ((uint64_t)s->depth << 20) ^ (uint64_t)s->limit_was_ns;
    return (v + 0xc011) * UINT64_C(0x9e3779b97f4a7c15) | 1;
}

static struct scope enter(struct coil__task *t, const char *call, unsigned flags) {
    if (UNLIKELY(t->depth == DEPTH_MAX))
        MISUSE(call, "more than %d scopes inside one another", (int)DEPTH_MAX);
    struct scope s = {.limit_was_ns = t->limit_ns,
                      .shield_was_ns = t->shield_ns,
                      .depth = ++t->depth,
                      .owner_was = t->limit_owner,
                      .shield_owner_was = t->shield_owner,
                      .flags = flags | (t->fired ? WAS_FIRED : 0) | (t->shielded ? WAS_SHIELDED : 0)};
    s.check = check_word(t, &s);
    return s;
}

static coil_scope public_form(const struct scope *s) {
    coil_scope out;
    memcpy(&out, s, sizeof out);
    return out;
}

static void set_limit(struct coil__task *t, int64_t limit_ns, uint32_t owner) {
    t->limit_ns = limit_ns;
    t->limit_owner = owner;
    t->fired = false;
}

static coil_scope narrow(struct coil__task *t, const char *call, int64_t limit_ns) {
    struct scope s = enter(t, call, 0);
    if (limit_ns < t->limit_ns) set_limit(t, limit_ns, s.depth);
    return public_form(&s);
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
    struct scope s = enter(t, "coil_shield", IS_SHIELD);
    int64_t limit_ns = coil__add_ns(coil__clock(t->sched), MAX(grace.ns, 0));
    if (!t->shielded || limit_ns < t->shield_ns) {
        t->shield_ns = limit_ns;
        t->shield_owner = s.depth;
    }
    t->shielded = true;
    t->stop = false;
    set_limit(t, t->shield_ns, t->shield_owner);
    return public_form(&s);
}

static void restore_limit(struct coil__task *t, const struct scope *s) {
    t->limit_ns = s->limit_was_ns;
    t->limit_owner = s->owner_was;
    t->fired = s->flags & WAS_FIRED;
}

static void leave_shield(struct coil__task *t, const struct scope *s) {
    if (t->fired && t->limit_owner < s->depth) t->inherit_fired = t->limit_owner;
    restore_limit(t, s);
    t->shield_ns = s->shield_was_ns;
    t->shield_owner = s->shield_owner_was;
    t->shielded = s->flags & WAS_SHIELDED;
    t->stop = t->cancelled && !t->shielded;
}

bool coil_leave(coil_scope *scope) {
    struct coil__task *t = coil__current("coil_leave");
    struct scope s;
    memcpy(&s, scope, sizeof s);
    if (UNLIKELY(s.check != check_word(t, &s))) {
        MISUSE("coil_leave",
               "this is no open scope of the current task (left twice, jumped into, or another task's)");
    }
    if (UNLIKELY(s.depth != t->depth))
        MISUSE("coil_leave", "scopes are left in reverse order; one was jumped past");
    bool struck = (t->limit_owner == s.depth && t->fired) || t->inherit_fired == s.depth;
    if (s.flags & IS_SHIELD) {
        leave_shield(t, &s);
    } else if (t->limit_owner == s.depth) {
        restore_limit(t, &s);
    }
    if (t->inherit_fired == s.depth) t->inherit_fired = 0;
    t->depth--;
    memset(scope, 0, sizeof *scope);
    return struck;
}

void coil_leave_(coil_scope *scope) {
    coil_leave(scope);
}
