/* One public call, one request. */
#include "blocking.h"
#include "caps.h"
#include "op.h"

#include "coil/io.h"

#include <limits.h>
#include <poll.h>
#include <string.h>
#include <sys/stat.h>

/* Waits for readiness. */
static int wait_ready(struct coil__task *t, int fd, short events, int64_t until_ns) {
    struct coil__op op;
    coil__op_init(&op);
    coil__op_prep_poll(&op, fd, events);
    return coil__op_call(t, &op, "poll", until_ns);
}

/* One request; where the kernel answers EAGAIN because the descriptor is O_NONBLOCK (which kernels do for
 * which operation differs), it waits for readiness and asks again. */
static int transfer(struct coil__task *t, struct coil__op *op, const char *what, short events) {
    struct coil__span span;
    int fd = op->req.sqe.fd, res, ready = 0;
    coil__span_begin(coil__worker_of(t->sched), &span, fd);
    do {
        res = coil__op_call(t, op, what, t->limit_ns);
        if (res == -EAGAIN && !span.closed) ready = wait_ready(t, fd, events, t->limit_ns);
    } while (res == -EAGAIN && ready >= 0 && !span.closed);
    coil__span_end(&span);
    if (res != -EAGAIN) return res;
    return ready < 0 ? ready : -EBADF;
}

static uint32_t length(size_t n) {
    return (uint32_t)MIN(n, (size_t)INT32_MAX);
}

/* A receive or send on a socket; MSG_DONTWAIT is the caller's wish to be told EAGAIN. */
static ssize_t on_socket(const char *call, uint8_t opcode, int fd, const void *p, size_t n, int flags) {
    struct coil__task *t = coil__current(call);
    int err = coil__admit(t);
    if (err) return err;
    struct coil__op op;
    coil__op_init(&op);
    bool send = opcode == IORING_OP_SEND || opcode == IORING_OP_SENDMSG;
    coil__op_prep(&op, opcode, fd, p, length(n), 0);
    op.req.sqe.msg_flags = (uint32_t)flags | (send ? MSG_NOSIGNAL : 0);
    const char *what = call + strlen("coil_");
    if (flags & MSG_DONTWAIT) return coil__op_call(t, &op, what, t->limit_ns);
    return transfer(t, &op, what, send ? POLLOUT : POLLIN);
}

ssize_t coil_recv(int fd, void *buf, size_t n, int flags) {
    return on_socket("coil_recv", IORING_OP_RECV, fd, buf, n, flags);
}

ssize_t coil_send(int fd, const void *buf, size_t n, int flags) {
    return on_socket("coil_send", IORING_OP_SEND, fd, buf, n, flags);
}

/* The same by plain calls: waits for readiness only. */
static ssize_t message_by_call(const struct coil__span *span, struct msghdr *m, int flags, bool send) {
    int fd = span->fd;
    struct coil__task *t = coil__current("coil_sendmsg");
    const struct coil__sys *sys = t->sched->driver->sys;
    for (;;) {
        ssize_t n = send ? sys->sendmsg(fd, m, flags) : sys->recvmsg(fd, m, flags);
        if (n != -EAGAIN || flags & MSG_DONTWAIT) return n;
        int err = wait_ready(t, fd, send ? POLLOUT : POLLIN, t->limit_ns);
        if (err < 0) return err;
        if (span->closed) return -EBADF;
    }
}

/* Early 5.10 kernels answer EINVAL to requests with ancillary data (descriptors that travel along). A plain
 * call takes them, and says EINVAL again where something else was meant. Which error tells of too many pieces
 * differs between kernels. */
static ssize_t on_message(const char *call, uint8_t opcode, int fd, struct msghdr *m, int flags) {
    struct coil__task *t = coil__current(call);
    if (!m) return coil__failed(t, -EINVAL);
    if (m->msg_iovlen > IOV_MAX) return coil__failed(t, -EMSGSIZE);
    struct coil__span span;
    coil__span_begin(coil__worker_of(t->sched), &span, fd);
    ssize_t n = on_socket(call, opcode, fd, m, 1, flags);
    if (n == -EINVAL && m->msg_controllen && !span.closed)
        n = message_by_call(&span, m, flags, opcode == IORING_OP_SENDMSG);
    coil__span_end(&span);
    return n;
}

ssize_t coil_recvmsg(int fd, struct msghdr *m, int flags) {
    return on_message("coil_recvmsg", IORING_OP_RECVMSG, fd, m, flags);
}

ssize_t coil_sendmsg(int fd, const struct msghdr *m, int flags) {
    return on_message("coil_sendmsg", IORING_OP_SENDMSG, fd, (struct msghdr *)(uintptr_t)m, flags);
}

/* ---- files, where the driver has no requests for them ---- */

struct file_call {
    struct coil__blocking b;
    const struct coil__sys *sys;
    uint8_t opcode;
    int fd;
    void *p;
    size_t n;
    int64_t offset;
    ssize_t res;
};

static void run_file_call(struct coil__job *j) {
    struct file_call *c = CONTAINER_OF(j, struct file_call, b.job);
    switch (c->opcode) {
    case IORING_OP_READ:
        c->res = c->sys->read_file(c->fd, c->p, c->n, c->offset);
        break;
    case IORING_OP_WRITE:
        c->res = c->sys->write_file(c->fd, c->p, c->n, c->offset);
        break;
    default:
        c->res = c->sys->close_file(c->fd);
    }
}

static void prep_file_call(struct file_call *c, const struct coil__task *t, uint8_t opcode, int fd) {
    c->b.job.run = run_file_call;
    c->b.job.lane = COIL__LANE_FILES;
    c->b.fd = c->fd = fd;
    c->b.closes = opcode == IORING_OP_CLOSE;
    c->sys = t->sched->driver->sys;
    c->opcode = opcode;
}

/* Whether a call on fd is one for the pool: a disk may keep it waiting, and readiness says nothing about
 * that. */
static bool for_pool(const struct coil__task *t, int fd) {
    const struct coil__driver *d = t->sched->driver;
    if (d->caps & COIL__CAP_BIT(FILES)) return false;
    int type = d->sys->file_type(fd);
    return type == S_IFREG || type == S_IFDIR || type == S_IFBLK;
}

static ssize_t on_file(const char *call, uint8_t opcode, int fd, const void *p, size_t n, int64_t offset) {
    struct coil__task *t = coil__current(call);
    const char *what = call + strlen("coil_");
    int err = coil__admit(t);
    if (err) return err;
    if (offset < -1) return coil__failed(t, -EINVAL);
    if (for_pool(t, fd)) {
        struct file_call c = {.p = (void *)(uintptr_t)p, .n = length(n), .offset = offset};
        prep_file_call(&c, t, opcode, fd);
        err = coil__blocking_call(t, &c.b, what, t->limit_ns);
        return err ? coil__failed(t, err) : c.res;
    }
    struct coil__op op;
    coil__op_init(&op);
    coil__op_prep(&op, opcode, fd, p, length(n), (uint64_t)offset);
    short events = opcode == IORING_OP_READ ? POLLIN : POLLOUT;
    struct coil__span span;
    coil__span_begin(coil__worker_of(t->sched), &span, fd);
    ssize_t res = transfer(t, &op, what, events);
    if (res == -ESPIPE && offset == -1 && !span.closed) {
        /* Early 5.10 kernels take -1 for a position, which a socket doesn't have. */
        op.req.sqe.off = 0;
        res = transfer(t, &op, what, events);
    }
    coil__span_end(&span);
    return res;
}

ssize_t coil_read(int fd, void *buf, size_t n, int64_t offset) {
    return on_file("coil_read", IORING_OP_READ, fd, buf, n, offset);
}

ssize_t coil_write(int fd, const void *buf, size_t n, int64_t offset) {
    return on_file("coil_write", IORING_OP_WRITE, fd, buf, n, offset);
}

int coil_accept(int fd, struct sockaddr *addr, socklen_t *len, int flags) {
    struct coil__task *t = coil__current("coil_accept");
    int err = coil__admit(t);
    if (err) return err;
    struct coil__op op;
    coil__op_init(&op);
    coil__op_prep(&op, IORING_OP_ACCEPT, fd, addr, 0, (uint64_t)(uintptr_t)len);
    op.req.sqe.accept_flags = (uint32_t)flags;
    return transfer(t, &op, "accept", POLLIN);
}

int coil_connect(int fd, const struct sockaddr *addr, socklen_t len) {
    struct coil__task *t = coil__current("coil_connect");
    int err = coil__admit(t);
    if (err) return err;
    struct coil__op op;
    coil__op_init(&op);
    coil__op_prep(&op, IORING_OP_CONNECT, fd, addr, 0, len);
    return coil__op_call(t, &op, "connect", t->limit_ns);
}

int coil_poll(int fd, short events) {
    struct coil__task *t = coil__current("coil_poll");
    int err = coil__admit(t);
    if (err) return err;
    if (!events) return coil__failed(t, -EINVAL);
    struct coil__span span;
    int res;
    coil__span_begin(coil__worker_of(t->sched), &span, fd);
    do { /* Early 5.10 kernels tell also what nobody has asked for. */
        res = wait_ready(t, fd, events, t->limit_ns);
        if (res >= 0) res &= events | POLLERR | POLLHUP | POLLNVAL;
    } while (res == 0 && !span.closed);
    coil__span_end(&span);
    return res ? res : -EBADF;
}

int coil_shutdown(int fd, int how) {
    struct coil__task *t = coil__current("coil_shutdown");
    int err = coil__admit(t);
    if (err) return err;
    if (!(t->sched->driver->caps & COIL__CAP_BIT(SHUTDOWN))) {
        err = t->sched->driver->sys->shutdown(fd, how);
        coil__charge(t);
        return err;
    }
    struct coil__op op;
    coil__op_init(&op);
    coil__op_prep(&op, IORING_OP_SHUTDOWN, fd, NULL, (uint32_t)how, 0);
    return coil__op_call(t, &op, "shutdown", t->limit_ns);
}

int coil_nop(void) {
    struct coil__task *t = coil__current("coil_nop");
    int err = coil__admit(t);
    if (err) return err;
    struct coil__op op;
    coil__op_init(&op);
    coil__op_prep(&op, IORING_OP_NOP, -1, NULL, 0, 0);
    return coil__op_call(t, &op, "nop", t->limit_ns);
}

static int close_file(struct coil__task *t, int fd) {
    struct file_call c = {0};
    prep_file_call(&c, t, IORING_OP_CLOSE, fd);
    int err = coil__blocking_call_always(t, &c.b, "close");
    return err ? t->sched->driver->sys->close(fd) : (int)c.res;
}

static int close_by_request(struct coil__task *t, int fd) {
    struct coil__op op;
    coil__op_init(&op);
    coil__op_prep(&op, IORING_OP_CLOSE, fd, NULL, 0, 0);
    int err = coil__op_call_always(t, &op, "close");
    /* No memory for the request: a close is never refused. */
    return err == -ENOMEM ? t->sched->driver->sys->close(fd) : err;
}

/* TSan hears only close(2), and takes the next use of the number by another thread for a race otherwise; a
 * close on a thread of the pool, for a race with the driver. */
static int close_here(struct coil__task *t, int fd) {
    int err = t->sched->driver->sys->close(fd);
    coil__charge(t);
    return err;
}

int coil_close(int fd) {
    struct coil__task *t = coil__current("coil_close");
    if (fd < 0) return -EBADF;
    int err = coil__ops_end_on(t, fd);
    if (!err) err = coil__blocking_end_on(t, fd);
    if (err) return err;
    if (for_pool(t, fd)) return close_file(t, fd);
    return COIL__TSAN_ON ? close_here(t, fd) : close_by_request(t, fd);
}
