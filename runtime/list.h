/* Intrusive doubly linked list. A node that is on no list has next == NULL, so that "is it queued?" is one
 * test. */
#ifndef COIL__LIST_H
#define COIL__LIST_H

#include "base.h"

struct coil__node {
    struct coil__node *next, *prev;
};

struct coil__list {
    struct coil__node head;
};

static inline void coil__list_init(struct coil__list *l) {
    l->head.next = l->head.prev = &l->head;
}

static inline bool coil__list_empty(const struct coil__list *l) {
    return l->head.next == &l->head;
}

static inline bool coil__node_linked(const struct coil__node *n) {
    return n->next != NULL;
}

static inline void coil__list_push(struct coil__list *l, struct coil__node *n) {
    CHECK(!coil__node_linked(n));
    n->next = &l->head;
    n->prev = l->head.prev;
    l->head.prev->next = n;
    l->head.prev = n;
}

static inline void coil__node_unlink(struct coil__node *n) {
    CHECK(coil__node_linked(n));
    n->prev->next = n->next;
    n->next->prev = n->prev;
    n->next = n->prev = NULL;
}

/* The first node, taken off the list; NULL where there is none. */
static inline struct coil__node *coil__list_pop(struct coil__list *l) {
    struct coil__node *n = l->head.next;
    if (n == &l->head) return NULL;
    coil__node_unlink(n);
    return n;
}

static inline struct coil__node *coil__list_first(const struct coil__list *l) {
    /* The analyzer loses track of what an unlinked node was linked to.
     * NOLINTNEXTLINE(clang-analyzer-unix.Malloc) */
    return coil__list_empty(l) ? NULL : l->head.next;
}

/* Walks without taking off; the body must not unlink `it`. */
#define LIST_EACH(it, l) for (struct coil__node *it = (l)->head.next; it != &(l)->head; it = it->next)

#endif
