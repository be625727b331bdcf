/* Connecting to an address. */
#include "stream.h"

enum { FULL_RETRY_NS = 1000000 };

/* A Unix listener whose backlog is full answers EAGAIN, and nothing tells when there is room. */
static int connect_socket(struct coil__task *t, int fd, const coil_addr *a) {
    for (;;) {
        struct coil__op op;
        coil__op_init(&op);
        coil__op_prep(&op, IORING_OP_CONNECT, fd, &a->u, 0, a->len);
        int err = coil__op_call(t, &op, "connect", t->limit_ns);
        if (err != -EAGAIN || a->u.sa.sa_family != AF_UNIX) return err;
        err = coil_sleep((coil_dur){FULL_RETRY_NS});
        if (err) return err;
    }
}

/* The descriptor is closed after every failure: a connect that was cancelled may still succeed later. */
static int dial(coil_stream **out, struct coil__task *t, const coil_addr *to, const coil_addr *from) {
    struct coil__worker *w = coil__worker_of(t->sched);
    const struct coil__sys *sys = coil__sys_of(w);
    int fd = coil__sock_open(sys, to);
    if (fd < 0) return coil__failed(t, fd);
    int err = from ? sys->bind(fd, &from->u.sa, from->len) : 0;
    if (!err) err = connect_socket(t, fd, to);
    if (!err) err = coil__stream_new(w, fd, true, out);
    if (!err) return 0;
    sys->close(fd);
    return coil__failed(t, err);
}

static int check_opts(const coil_dial_opts *o) {
    if (!RESERVED_ZERO(o)) return -EINVAL;
    return o->from ? coil__addr_check(o->from) : 0;
}

static int checked_dial(coil_stream **out, struct coil__task *t, const coil_addr *to,
                        const coil_dial_opts *o) {
    int err = coil__addr_check(to);
    if (!err && o) err = check_opts(o);
    if (err) return coil__failed(t, err);
    return dial(out, t, to, o ? o->from : NULL);
}

int coil_dial_addr(coil_stream **out, const coil_addr *where, const coil_dial_opts *o) {
    struct coil__task *t = coil__current("coil_dial_addr");
    int err = coil__admit(t);
    if (out) *out = NULL;
    if (err) return err;
    return out ? checked_dial(out, t, where, o) : coil__failed(t, -EINVAL);
}

int coil_dial(coil_stream **out, const char *where, const coil_dial_opts *o) {
    struct coil__task *t = coil__current("coil_dial");
    coil_addr to;
    int err = coil__admit(t);
    if (out) *out = NULL;
    if (err) return err;
    if (!out) return coil__failed(t, -EINVAL);
    err = coil_addr_parse(&to, where);
    return err ? coil__failed(t, err) : checked_dial(out, t, &to, o);
}
