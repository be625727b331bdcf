/* Streams: buffered byte streams over a connected socket or a pipe end.
 *
 * At most one task is in a reading call (coil_stream_read, coil_stream_read_exact) and one in a writing call
 * (coil_stream_write, coil_stream_flush, coil_stream_finish) of a stream: a second one gets -EBUSY. Reading
 * and writing at once is fine.
 *
 * A failed send is remembered: every later write, flush, finish and close returns its error. If it was the
 * write limit, reading ends with -ETIME too, once what is buffered is used up; after another error a
 * peer's last words can still be read. The caller's own cancel or limit is no failed send: nothing is
 * remembered, and coil_stream_written tells how much was accepted. */
#ifndef COIL_STREAM_H
#define COIL_STREAM_H

#include <sys/types.h>

#include "core.h"
#include "net.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Limits of a stream; zero is the default of each, and COIL_FOREVER is no limit. A negative time is out of
 * range. */
typedef struct coil_limits {
    coil_dur read;      /* how long one reading call may take; default none */
    coil_dur write;     /* since the last byte left, while bytes wait; also in close; default 60 s */
    coil_dur idle;      /* no byte either way for so long: a parked read ends with -ETIME; default none */
    size_t high_water;  /* a write parks while more bytes than this wait to be sent; default 64 KiB */
    size_t read_buffer; /* with so many bytes unread no more is asked for, and what is on its way still comes;
                           64 KiB */
    uint64_t reserved[4]; /* must be zero */
} coil_limits;

/* Makes a stream of a connected socket or a pipe end. A descriptor of one direction only is good for that
 * one.
 * Returns: 0, and the stream in *out.
 * Errors: -EBADF: fd is not open. -EINVAL: out is NULL; fd is a listening socket, a regular file or a
 *         directory. -ENOMEM.
 * Memory: on success fd is the stream's: use coil_stream_close, not close(2). On failure it stays the
 *         caller's. *out is the caller's until coil_stream_close, coil_stream_abort or coil_stream_detach.
 * Mark: [now]. Thread: a task.
 * Source: socket(7), pipe(7). */
COIL_API int coil_stream_adopt(coil_stream **out, int fd);

/* Flushes, then gives the descriptor back and ends the stream.
 * Returns: the descriptor, >= 0.
 * Errors: -EINVAL: s is NULL. -EBUSY: input is buffered, or another task is in a call of s. -EBADF: s is
 *         being closed. What coil_stream_flush returns: the bytes could not be sent. -ECANCELED, -ETIME:
 *         refused, or ended by cancel or limit. After any error s is what it was.
 * Memory: on success s is gone and the descriptor is the caller's; else s stays the caller's.
 * Mark: [parks]. Thread: a task. */
COIL_API int coil_stream_detach(coil_stream *s);

/* Sets all limits of the stream; they hold from the next call on, the write limit also for bytes that wait
 * already.
 * Returns: 0.
 * Errors: -EINVAL: s is NULL, a time is negative, a size is out of range (above 1 GiB), or a reserved word is
 *         not zero; nothing is changed. -EBADF: s is being closed.
 * Memory: *l is borrowed until the call returns; NULL: the defaults.
 * Mark: [now]. Thread: a task. */
COIL_API int coil_stream_limits(coil_stream *s, const coil_limits *l);

/* Reads what is there, at least one byte and at most n.
 * Returns: the count; 0: the peer has ended its direction, and everything was read.
 * Errors: -EINVAL: n is 0, or s or buf is NULL. -EBUSY: another task reads. -EBADF: s is being closed, or
 *         cannot be read. -ETIME: refused, the caller's limit, or the stream's read, idle or (see above)
 *         write limit. -ECANCELED: refused, or ended by cancel. -ECONNRESET, -ETIMEDOUT and others: the
 *         connection broke. -ENOMEM. After -ECANCELED, -ETIME of the caller and -EBUSY no byte is lost.
 * Memory: buf is lent until the call returns.
 * Mark: [parks]. Thread: a task.
 * Source: recv(2). */
COIL_API ssize_t coil_stream_read(coil_stream *s, void *buf, size_t n);

/* Reads exactly n bytes.
 * Returns: 0.
 * Errors: -ENODATA: the peer ended its direction before n bytes. Else as coil_stream_read.
 * Memory: buf is lent until the call returns. *done is always set, on every return, to the bytes that are in
 *         buf; done may be NULL.
 * Mark: [parks]. Thread: a task. */
COIL_API int coil_stream_read_exact(coil_stream *s, void *buf, size_t n, size_t *done);

/* Accepts n bytes for sending: copies them and returns. They leave at the end of the worker's turn at the
 * latest. Over the high-water mark it parks until there is room; a large write is sent from the caller's
 * memory, parked.
 * Returns: 0: all n bytes are accepted. 0 bytes are accepted too.
 * Errors: -EINVAL: s is NULL, or buf is while n is not 0. -EBUSY: another task writes. -EBADF: s is being
 *         closed, or cannot be written. -EPIPE: our direction was finished, or the peer reads no more.
 *         -ECONNRESET, -ETIMEDOUT and others: a send failed, now or before. -ETIME: refused, the caller's
 *         limit, or the stream's write limit. -ECANCELED: refused, or ended by cancel. -ENOMEM.
 *         coil_stream_written tells how much of it was accepted.
 * Memory: buf is lent until the call returns.
 * Mark: [parks]. Thread: a task.
 * Source: send(2). */
COIL_API int coil_stream_write(coil_stream *s, const void *buf, size_t n);

/* How many bytes the stream has accepted for sending since it began: tells how far a failed write came.
 * Returns: the count.
 * Mark: [now]. Thread: a task. */
COIL_API int64_t coil_stream_written(const coil_stream *s);

/* Waits until all accepted bytes are with the kernel.
 * Returns: 0.
 * Errors: -EINVAL: s is NULL. -EBUSY, -EBADF, -EPIPE, -ECONNRESET, -ETIMEDOUT, -ETIME, -ECANCELED and others:
 *         as coil_stream_write.
 * Mark: [parks]. Thread: a task. */
COIL_API int coil_stream_flush(coil_stream *s);

/* Flushes, then ends our direction: the peer reads the end. Reading goes on. Finishing again returns 0.
 * Returns: 0.
 * Errors: as coil_stream_flush; then our direction is still open, unless the connection broke. -EINVAL also:
 *         s is a pipe end, which only coil_stream_close ends.
 * Mark: [parks]. Thread: a task.
 * Source: shutdown(2), SHUT_WR; RFC 9293 section 3.6. */
COIL_API int coil_stream_finish(coil_stream *s);

/* Flushes and closes the stream, on every path: within the write limit and the caller's limits; in a
 * cancelled or expired task it tries once to send, without waiting. Calls of other tasks inside the stream
 * return -EBADF first.
 * Returns: 0: all accepted bytes are with the kernel; also for NULL.
 * Errors: why accepted bytes did not leave: the remembered error of a send, -ETIME, -ECANCELED, -EPIPE,
 *         -ECONNRESET and others. The stream is closed all the same. -EBADF: another task closes it already.
 * Memory: s and its descriptor are gone when the call returns.
 * Mark: [always]. Thread: a task.
 * Source: close(2). */
COIL_API int coil_stream_close(coil_stream *s);

/* Closes the stream at once and drops what waits to be sent; a TCP peer gets a reset. NULL: does nothing.
 * Memory: s and its descriptor are gone when the call returns; where another task closes s already, that one
 *         takes it back.
 * Mark: [always]. Thread: a task.
 * Source: socket(7), SO_LINGER; RFC 9293 section 3.10.5. */
COIL_API void coil_stream_abort(coil_stream *s);

/* Tells the peer's address.
 * Returns: 0.
 * Errors: -EINVAL: s or out is NULL. -ENOTCONN: the connection is gone. -ENOTSOCK: s is a pipe end. -EBADF: s
 *         is being closed. *out is then all zero.
 * Memory: *out is the caller's.
 * Mark: [now]. Thread: a task.
 * Source: getpeername(2). */
COIL_API int coil_stream_peer(const coil_stream *s, coil_addr *out);

/* Tells our own address.
 * Returns: 0.
 * Errors: -EINVAL: s or out is NULL. -ENOTSOCK: s is a pipe end. -EBADF: s is being closed. *out is then all
 *         zero.
 * Memory: *out is the caller's.
 * Mark: [now]. Thread: a task.
 * Source: getsockname(2). */
COIL_API int coil_stream_local(const coil_stream *s, coil_addr *out);

/* Tells the stream's descriptor, for options.
 * Returns: the descriptor, >= 0.
 * Errors: -EBADF: s is being closed. -EINVAL: s is NULL.
 * Memory: the descriptor is borrowed: it stays the stream's. Do not read, write or close it, and do not give
 *         it a linger time, which would make the worker wait when the stream is closed.
 * Mark: [now]. Thread: a task.
 * Source: setsockopt(2). */
COIL_API int coil_stream_fd(const coil_stream *s);

#ifdef __cplusplus
}
#endif

#endif
