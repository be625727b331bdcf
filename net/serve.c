/* Serving: a task per connection, all in one group, until the serving task is cancelled. */
#include "group.h"
#include "listen.h"

#include <stdlib.h>

static const int64_t default_grace_ns = 5000000000;
static const coil_dur shortage_rest = {10000000};

struct server {
    coil_listener *l;
    coil_handler *fn;
    void *arg;
    const coil_serve_opts *o;
    coil_group *g;
    size_t open;             /* connections */
    struct coil__wait *full; /* the serving task waits until one of them ends */
};

struct connection {
    struct server *sv;
    coil_stream *s;
};

static void tell(const struct server *sv, const coil_addr *peer, int err) {
    if (sv->o->on_error) sv->o->on_error(sv->arg, peer, err);
}

static void one_less(struct server *sv) {
    sv->open--;
    if (!sv->full || !coil__node_linked(&sv->full->entry.node)) return;
    struct coil__wait *w = sv->full;
    coil__node_unlink(&w->entry.node);
    coil__ready(w, 0);
}

/* Asked for before the connection can break: a socket that was reset no longer tells. */
static const coil_addr *peer_of(const struct server *sv, coil_stream *s, coil_addr *peer) {
    return sv->o->on_error && coil_stream_peer(s, peer) == 0 ? peer : NULL;
}

/* A cancel at the end of the grace is no error of the connection's. */
static int serve_one(void *arg) {
    struct connection c = *(struct connection *)arg;
    struct server *sv = c.sv;
    coil_addr at;
    const coil_addr *peer = peer_of(sv, c.s, &at);
    free(arg);
    coil_name("connection on descriptor %d", coil_stream_fd(c.s));
    int result = sv->fn(c.s, sv->arg);
    int closed = coil_stream_close(c.s);
    int err = result < 0 ? result : closed;
    bool cancelled = err == -ECANCELED && coil_cancelled();
    if (err < 0 && !cancelled) tell(sv, peer, err);
    one_less(sv);
    return 0;
}

/* 0; or an error, and then the connection is over: one that can't have a task is ended rather than kept
 * waiting. */
static int begin_connection(struct server *sv, coil_stream *s) {
    struct connection *c = malloc(sizeof *c);
    int err = c ? 0 : -ENOMEM;
    if (c) {
        *c = (struct connection){.sv = sv, .s = s};
        err = coil_group_spawn(sv->g, serve_one, c);
    }
    if (!err) {
        sv->open++;
        return 0;
    }
    coil_addr at;
    free(c);
    tell(sv, peer_of(sv, s, &at), err);
    coil_stream_abort(s);
    return err;
}

/* While as many connections are open as may be, nothing is accepted: the kernel's backlog holds the others
 * back. */
static int await_room(struct server *sv, struct coil__task *t) {
    if (!sv->o->connections_max || sv->open < sv->o->connections_max) return 0;
    coil__listener_pause(sv->l);
    while (sv->open >= sv->o->connections_max) {
        struct coil__wait w = {.abort = coil__wait_leave, .what = "room for a connection", .fd = -1};
        if (coil__listener_closing(sv->l)) return -EBADF;
        sv->full = &w;
        coil__listener_watch(sv->l, &w);
        coil__park_until(t, &w, t->limit_ns);
        sv->full = NULL;
        if (w.interrupted) return coil__stop_error(t);
    }
    return 0;
}

/* Accepts until something ends it: a cancel, a limit, or the listener. */
static int accept_all(struct server *sv, struct coil__task *t) {
    for (;;) {
        coil_stream *s;
        int err = await_room(sv, t);
        if (err) return err;
        err = coil_listener_accept(sv->l, &s);
        if (!err) {
            err = begin_connection(sv, s);
        } else if (coil__is_shortage(err)) {
            tell(sv, NULL, err);
        } else {
            return err;
        }
        /* What is short now is short at once again. */
        if (err) err = coil_sleep(shortage_rest);
        if (err) return err;
    }
}

/* No cancel and no limit of the caller's shortens the grace; what is left after it is cancelled. How many
 * that were. */
static int drain(struct server *sv, struct coil__task *t) {
    int64_t grace_ns = sv->o->grace.ns ? MAX(sv->o->grace.ns, 0) : default_grace_ns;
    coil_scope shield = coil_shield((coil_dur){grace_ns});
    uint32_t left = coil__group_drain(sv->g, t->limit_ns);
    coil_leave(&shield);
    coil_group_close_(sv->g);
    return (int)left;
}

int coil_serve(coil_listener *l, coil_handler *fn, void *arg, const coil_serve_opts *o) {
    static const coil_serve_opts defaults;
    struct coil__task *t = coil__current("coil_serve");
    int err = coil__admit(t);
    if (err) return err;
    if (!o) o = &defaults;
    if (!l || !fn || !RESERVED_ZERO(o)) return coil__failed(t, -EINVAL);
    COIL_GROUP(g);
    struct server sv = {.l = l, .fn = fn, .arg = arg, .o = o, .g = &g};
    coil_group_keep_going(&g);
    coil__group_drop_results(&g);
    coil__listener_enter(l);
    err = accept_all(&sv, t);
    coil__listener_pause(l);
    /* From here on it may be gone: a handler that closes it must not wait for itself. */
    coil__listener_leave(l);
    bool stopped = err == -ECANCELED || err == -ETIME;
    int left = drain(&sv, t);
    return stopped ? left : err;
}
