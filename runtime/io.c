/* One public call, one request. */
#include "caps.h"
#include "op.h"

#include "coil/io.h"

#include <poll.h>
#include <string.h>

/* Waits for readiness. */
static int wait_ready(struct coil__task *t, int fd, short events, int64_t until_ns) {
    struct coil__op op;
    coil__op_init(&op);
    coil__op_prep(&op, IORING_OP_POLL_ADD, fd, NULL, 0, 0);
    op.req.sqe.poll32_events = coil__poll_mask(events);
    return coil__op_call(t, &op, "poll", until_ns);
}

/* One request; where the kernel answers EAGAIN because the descriptor is O_NONBLOCK (which kernels do for
 * which operation differs), it waits for readiness and asks again. */
static int transfer(struct coil__task *t, struct coil__op *op, const char *what, short events) {
    for (;;) {
        int res = coil__op_call(t, op, what, t->limit_ns);
        if (res != -EAGAIN) return res;
        res = wait_ready(t, op->req.sqe.fd, events, t->limit_ns);
        if (res < 0) return res;
    }
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

ssize_t coil_recvmsg(int fd, struct msghdr *m, int flags) {
    if (!m) return -EINVAL;
    return on_socket("coil_recvmsg", IORING_OP_RECVMSG, fd, m, 1, flags);
}

ssize_t coil_sendmsg(int fd, const struct msghdr *m, int flags) {
    if (!m) return -EINVAL;
    return on_socket("coil_sendmsg", IORING_OP_SENDMSG, fd, m, 1, flags);
}

static ssize_t on_file(const char *call, uint8_t opcode, int fd, const void *p, size_t n, int64_t offset) {
    struct coil__task *t = coil__current(call);
    int err = coil__admit(t);
    if (err) return err;
    if (offset < -1) return -EINVAL;
    struct coil__op op;
    coil__op_init(&op);
    coil__op_prep(&op, opcode, fd, p, length(n), (uint64_t)offset);
    return transfer(t, &op, call + strlen("coil_"), opcode == IORING_OP_READ ? POLLIN : POLLOUT);
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
    if (!events) return -EINVAL;
    return wait_ready(t, fd, events, t->limit_ns);
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

int coil_close(int fd) {
    struct coil__task *t = coil__current("coil_close");
    if (fd < 0) return -EBADF;
    int err = coil__ops_end_on(t, fd);
    if (err) return err;
    struct coil__op op;
    coil__op_init(&op);
    coil__op_prep(&op, IORING_OP_CLOSE, fd, NULL, 0, 0);
    err = coil__op_call_always(t, &op, "close");
    /* No memory for the request: a close is never refused. */
    return err == -ENOMEM ? t->sched->driver->sys->close(fd) : err;
}
