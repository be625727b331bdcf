/* One call, one request, on plain descriptors.
 *
 * The descriptor is borrowed: it stays the caller's. Whether it is O_NONBLOCK or not, the call parks until it
 * can do its work. One call moves as much as one system call would: a short count is no error. SIGPIPE is
 * never raised. On a cancel or a limit the kernel is asked to stop and waited for; what it did before is
 * returned.
 *
 * The entries name the errors that matter; others that the kernel gives for the call are passed on as they
 * are. Every call but coil_close has these: -EBADF: fd is not open, or not for this. -ENOMEM: no kernel
 * memory. -ECANCELED, -ETIME: refused, or ended by cancel or limit, and nothing was done. */
#ifndef COIL_IO_H
#define COIL_IO_H

#include <sys/socket.h>
#include <sys/types.h>

#include "core.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Receives up to n bytes from a socket.
 * Returns: the count; 0: the peer has ended its direction (or n is 0).
 * Errors: -ECONNRESET, -ETIMEDOUT: the connection broke. -ENOTCONN, -ENOTSOCK: fd is not such a socket.
 *         -EAGAIN: flags has MSG_DONTWAIT and nothing is there. -EFAULT: buf is not memory. -ECANCELED,
 *         -ETIME, -EBADF, -ENOMEM: above.
 * Memory: buf is lent to the kernel until the call returns.
 * Mark: [parks]. Thread: a task.
 * Source: recv(2), also for flags. */
COIL_API ssize_t coil_recv(int fd, void *buf, size_t n, int flags);

/* Sends up to n bytes on a socket.
 * Returns: the count, which may be less than n.
 * Errors: -EPIPE: our direction has ended. -ECONNRESET, -ETIMEDOUT: the connection broke. -ENOTCONN,
 *         -EDESTADDRREQ, -ENOTSOCK: fd is not such a socket. -EMSGSIZE: too long for one datagram. -EAGAIN:
 *         flags has MSG_DONTWAIT and there is no room. -EFAULT: buf is not memory. -ECANCELED, -ETIME,
 *         -EBADF, -ENOMEM: above.
 * Memory: buf is lent to the kernel until the call returns.
 * Mark: [parks]. Thread: a task.
 * Source: send(2), also for flags; MSG_NOSIGNAL is always added. */
COIL_API ssize_t coil_send(int fd, const void *buf, size_t n, int flags);

/* Receives one message, with address and control data, from a socket.
 * Returns: the count; 0: the peer has ended its direction, or an empty datagram. *m tells lengths and flags.
 * Errors: as coil_recv. -EMSGSIZE: m->msg_iovlen is too large. -EINVAL: m is NULL.
 * Memory: *m and all that it points to are lent to the kernel until the call returns. Descriptors received in
 *         control data are the caller's.
 * Mark: [parks]. Thread: a task.
 * Source: recvmsg(2), cmsg(3). */
COIL_API ssize_t coil_recvmsg(int fd, struct msghdr *m, int flags);

/* Sends one message, with address and control data, on a socket.
 * Returns: the count, which may be less than asked on a stream socket.
 * Errors: as coil_send. -EINVAL: m is NULL.
 * Memory: *m and all that it points to are lent to the kernel until the call returns.
 * Mark: [parks]. Thread: a task.
 * Source: sendmsg(2); MSG_NOSIGNAL is always added. */
COIL_API ssize_t coil_sendmsg(int fd, const struct msghdr *m, int flags);

/* Reads up to n bytes from any descriptor. Where the driver has no requests for files, a thread of the
 * blocking pool reads those: what has begun there is not stopped by a cancel or limit, but waited for.
 * Returns: the count; 0: end of file (or n is 0).
 * Errors: -EINVAL: offset is below -1, or fd does not suit reading. -EISDIR: a directory. -EIO: the device
 *         failed. -EFAULT: buf is not memory. -EAGAIN: too many calls wait for a thread of the pool already
 *         (blocking_queue of the run's options). -ENOMEM also: it has no thread, and none could be started.
 *         -ECANCELED, -ETIME, -EBADF, -ENOMEM: above.
 * Units: offset is in bytes from the start of the file; -1: at the current position, which moves on. What has
 *         no position (a pipe, a socket) takes no notice of it.
 * Memory: buf is lent to the kernel until the call returns.
 * Mark: [parks]. Thread: a task.
 * Source: read(2), pread(2). */
COIL_API ssize_t coil_read(int fd, void *buf, size_t n, int64_t offset);

/* Writes up to n bytes to any descriptor; to files as coil_read reads them.
 * Returns: the count, which may be less than n.
 * Errors: -EINVAL, -EIO, -EFAULT, -EAGAIN: as coil_read. -EPIPE: nobody reads the pipe or socket. -ENOSPC,
 *         -EDQUOT, -EFBIG: no room. -ECANCELED, -ETIME, -EBADF, -ENOMEM: above, and as coil_read.
 * Units: offset as in coil_read.
 * Memory: buf is lent to the kernel until the call returns.
 * Mark: [parks]. Thread: a task.
 * Source: write(2), pwrite(2). */
COIL_API ssize_t coil_write(int fd, const void *buf, size_t n, int64_t offset);

/* Accepts one connection from a listening socket.
 * Returns: the new descriptor, >= 0.
 * Errors: -EINVAL: fd does not listen, or flags is unknown. -ENOTSOCK, -EOPNOTSUPP: fd is not such a socket.
 *         -EMFILE, -ENFILE: no descriptor is free; the connection waits. -ECONNABORTED: the connection broke
 *         before it was taken. -ECANCELED, -ETIME, -EBADF, -ENOMEM: above.
 * Memory: addr and len are lent until the call returns, *len in and out; both may be NULL. The descriptor is
 *         the caller's.
 * Mark: [parks]. Thread: a task.
 * Source: accept4(2), also for flags (SOCK_CLOEXEC, SOCK_NONBLOCK). */
COIL_API int coil_accept(int fd, struct sockaddr *addr, socklen_t *len, int flags);

/* Connects a socket.
 * Returns: 0.
 * Errors: -ECONNREFUSED, -EHOSTUNREACH, -ENETUNREACH, -ETIMEDOUT, -ECONNRESET: the network's answer. -ENOENT:
 *         no such Unix socket. -EADDRNOTAVAIL, -EAFNOSUPPORT, -EINVAL: the address does not suit. -EISCONN,
 *         -EALREADY: connected, or on the way. -EACCES, -EPERM: forbidden. -ECANCELED, -ETIME, -EBADF,
 *         -ENOMEM: above; after -ECANCELED or -ETIME close fd, it may still connect.
 * Memory: addr is lent until the call returns.
 * Mark: [parks]. Thread: a task.
 * Source: connect(2). */
COIL_API int coil_connect(int fd, const struct sockaddr *addr, socklen_t len);

/* Waits until fd is ready for one of events.
 * Returns: the events that are there, > 0; POLLERR and POLLHUP may be among them without being asked for. A
 *         regular file is always ready.
 * Errors: -EINVAL: events is 0. -ECANCELED, -ETIME, -EBADF, -ENOMEM: above.
 * Mark: [parks]. Thread: a task.
 * Source: poll(2), also for events (POLLIN, POLLOUT, POLLPRI, POLLRDHUP). */
COIL_API int coil_poll(int fd, short events);

/* Ends one or both directions of a connected socket.
 * Returns: 0.
 * Errors: -ENOTCONN, -ENOTSOCK: fd is not a connected socket. -EINVAL: how is unknown. -ECANCELED, -ETIME,
 *         -EBADF, -ENOMEM: above.
 * Mark: [parks]. Thread: a task.
 * Source: shutdown(2), also for how (SHUT_RD, SHUT_WR, SHUT_RDWR). */
COIL_API int coil_shutdown(int fd, int how);

/* Makes one trip through the kernel that does nothing: for tests and measurements.
 * Returns: 0.
 * Errors: -ECANCELED, -ETIME, -ENOMEM: above.
 * Mark: [parks]. Thread: a task.
 * Source: io_uring_enter(2), IORING_OP_NOP. */
COIL_API int coil_nop(void);

/* Closes a descriptor. This worker's requests on it, of other tasks too, are first taken out of the queue and
 * out of the kernel; their calls return -EBADF, or what they had done.
 * Returns: 0.
 * Errors: -EBADF: fd is not open. -EIO, -ENOSPC, -EDQUOT: what was written before did not reach the device;
 *         fd is closed all the same.
 * Mark: [always]. Thread: a task.
 * Source: close(2). */
COIL_API int coil_close(int fd);

#ifdef __cplusplus
}
#endif

#endif
