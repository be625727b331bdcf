/* Addresses, listening, dialling, serving. */
#ifndef COIL_NET_H
#define COIL_NET_H

#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "core.h"

#ifdef __cplusplus
extern "C" {
#endif

/* An address of a socket. A value; nothing to free. Source: ip(7), ipv6(7), unix(7). */
typedef struct coil_addr {
    socklen_t len; /* bytes of u in use; what bind(2) and connect(2) take */
    union {
        struct sockaddr sa;      /* sa.sa_family tells which member holds */
        struct sockaddr_in in;   /* AF_INET; port and address in network byte order */
        struct sockaddr_in6 in6; /* AF_INET6; likewise */
        struct sockaddr_un un;   /* AF_UNIX; an abstract name begins with a zero byte and ends with len */
    } u;
} coil_addr;

/* A connection: see stream.h. */
typedef struct coil_stream coil_stream;
/* A socket that takes connections. */
typedef struct coil_listener coil_listener;

/* Bytes that coil_addr_format needs at most, the terminating zero included. */
#define COIL_ADDR_TEXT_MAX 448

/* Reads an address from text. Nothing may stand before or after it; a port is decimal, 0 to 65535, without
 * leading zeros:
 *   "127.0.0.1:80"       IPv4
 *   "[::1]:80"           IPv6
 *   "[fe80::1%eth0]:80"  IPv6 with its scope: the name of an interface, or its number (%3)
 *   ":80"                any address, both families: the same as "[::]:80"
 *   "unix:/run/x"        Unix socket at a path, also a relative one
 *   "unix:@name"         Unix socket with an abstract name
 *   "unix:"              Unix socket without a name: what a peer that was never bound has
 * In a path or an abstract name \xHH (two hexadecimal digits) stands for one byte, and a backslash stands
 * nowhere else: "unix:@a\x00b" has a zero byte, "unix:\x40x" is the path "@x".
 * Returns: 0.
 * Errors: -EINVAL: not of this form; a host name; a zero byte in a path; out or text is NULL. -ENAMETOOLONG:
 *         a path or an abstract name of more than 107 bytes. -ENODEV: no interface has this name. -EMFILE,
 *         -ENFILE, -ENOMEM, -EAFNOSUPPORT: no IPv6 socket to ask the kernel with; only for a scope by name.
 * Memory: *out is the caller's; on failure it is all zero.
 * Mark: [any]. Thread: any.
 * Source: RFC 4291 section 2.2, RFC 4007 section 11, RFC 3986 section 3.2.2, unix(7), inet_pton(3). */
COIL_API int coil_addr_parse(coil_addr *out, const char *text);

/* Writes an address as text that coil_addr_parse reads back to the same address. A scope is written by the
 * name of its interface, else by its number. In a Unix name \xHH stands for every byte that is not printable
 * ASCII, for the backslash, and for an @ at the start of a path. Two things do not come back: a flow label,
 * which is not written, and a path of 108 bytes, which leaves no room for its zero and is too long to read.
 * Returns: the length of the text, without the terminating zero.
 * Errors: -ENOSPC: the text and its zero need more than n bytes. -EAFNOSUPPORT: a family other than IPv4,
 *         IPv6 and Unix. -EINVAL: a or text is NULL, or a->len does not suit the family. On failure text is
 *         "" where n is not 0.
 * Memory: text is the caller's; COIL_ADDR_TEXT_MAX bytes are always enough.
 * Mark: [any]. Thread: any.
 * Source: RFC 5952, RFC 4007 section 11, unix(7), inet_ntop(3), if_indextoname(3). */
COIL_API int coil_addr_format(const coil_addr *a, char *text, size_t n);

/* Options of listening; zero is the default of each. */
typedef struct coil_listen_opts {
    int backlog;          /* connections that the kernel keeps waiting; 0: 4096. Source: listen(2) */
    bool reuse_port;      /* several listeners share the port. Source: socket(7), SO_REUSEPORT */
    bool v6_only;         /* an IPv6 address takes no IPv4 connections. Source: ipv6(7), IPV6_V6ONLY */
    uint64_t reserved[6]; /* must be zero */
} coil_listen_opts;

/* Listens at an address given as text. A port that another process is just letting go is tried again for up
 * to 1 s.
 * Returns: 0, and the listener in *out.
 * Errors: as coil_addr_parse, and as coil_listen_addr.
 * Memory: *out is the caller's until coil_listener_close. where and *o are borrowed until the call returns.
 * Mark: [parks]. Thread: a task. */
COIL_API int coil_listen(coil_listener **out, const char *where, const coil_listen_opts *o);

/* Listens at an address. A port that another process is just letting go is tried again for up to 1 s.
 * Returns: 0, and the listener in *out; port 0 takes a free port, which coil_listener_addr tells.
 * Errors: -EINVAL: where is NULL or malformed, backlog is negative, or a reserved word is not zero.
 *         -EADDRINUSE: taken, also after the second. -EADDRNOTAVAIL: not an address of this machine.
 *         -EACCES: a port below 1024, or a directory, that is not ours. -ENOENT, -ENOTDIR, -EROFS: the
 *         directory of a Unix path is not there or not writable. -EAFNOSUPPORT: the kernel or coil does not
 *         have the family. -EMFILE, -ENFILE, -ENOMEM: no descriptor, or no memory. -ECANCELED, -ETIME:
 *         refused, or ended by cancel or limit.
 * Memory: as coil_listen.
 * Mark: [parks]. Thread: a task.
 * Source: bind(2), listen(2). */
COIL_API int coil_listen_addr(coil_listener **out, const coil_addr *where, const coil_listen_opts *o);

/* Takes the next connection; several tasks may wait for one. TCP connections have TCP_NODELAY on.
 * Returns: 0, and the connection in *out.
 * Errors: -EINVAL: l or out is NULL. -EMFILE, -ENFILE, -ENOMEM: no descriptor, or no memory; the connection
 *         waits. -EBADF: the listener
 *         is being closed. -ECANCELED, -ETIME: refused, or ended by cancel or limit.
 * Memory: *out is the caller's until coil_stream_close, coil_stream_abort or coil_stream_detach.
 * Mark: [parks]. Thread: a task.
 * Source: accept(2), tcp(7). */
COIL_API int coil_listener_accept(coil_listener *l, coil_stream **out);

/* Tells the address that the listener is bound to, with the port that the kernel chose.
 * Returns: 0.
 * Errors: -EINVAL: l or out is NULL.
 * Memory: *out is the caller's.
 * Mark: [now]. Thread: a task.
 * Source: getsockname(2). */
COIL_API int coil_listener_addr(const coil_listener *l, coil_addr *out);

/* Stops listening. Connections that were not handed out are closed with it; those handed out live on. A Unix
 * path stays in the file system.
 * Returns: 0; also for NULL.
 * Errors: -EBADF: another task closes it already.
 * Memory: l is gone when the call returns.
 * Mark: [always]. Thread: a task. */
COIL_API int coil_listener_close(coil_listener *l);

/* Options of dialling; zero is the default of each. */
typedef struct coil_dial_opts {
    /* Our own address, borrowed until the call returns; NULL: the kernel's choice. Source: bind(2). */
    const coil_addr *from;
    /* Must be zero. */
    uint64_t reserved[6];
} coil_dial_opts;

/* Connects to an address given as text. TCP connections have TCP_NODELAY on.
 * Returns: 0, and the connection in *out.
 * Errors: as coil_addr_parse, and as coil_dial_addr.
 * Memory: *out is the caller's until coil_stream_close, coil_stream_abort or coil_stream_detach. where and *o
 *         are borrowed until the call returns. After a failure no socket stays.
 * Mark: [parks]. Thread: a task. */
COIL_API int coil_dial(coil_stream **out, const char *where, const coil_dial_opts *o);

/* Connects to an address. TCP connections have TCP_NODELAY on.
 * Returns: 0, and the connection in *out.
 * Errors: -EINVAL: where is NULL or malformed, or a reserved word is not zero. -ECONNREFUSED, -EHOSTUNREACH,
 *         -ENETUNREACH, -ETIMEDOUT, -ECONNRESET: the network's answer. -ENOENT: no such Unix socket.
 *         -EADDRINUSE, -EADDRNOTAVAIL: from does not suit, or no port is free. -EAFNOSUPPORT: the kernel or
 *         coil does not have the family. -EACCES, -EPERM: forbidden. -EMFILE, -ENFILE, -ENOMEM: no
 *         descriptor, or no memory. -ECANCELED, -ETIME: refused, or ended by cancel or limit.
 * Memory: as coil_dial.
 * Mark: [parks]. Thread: a task.
 * Source: connect(2), tcp(7). */
COIL_API int coil_dial_addr(coil_stream **out, const coil_addr *where, const coil_dial_opts *o);

/* What serves one connection, in a task of its own, which reports call "connection on descriptor N" unless it
 * names itself. The stream is serve's: closed when the handler returns, whatever it returns; a result < 0
 * goes to on_error. */
typedef int coil_handler(coil_stream *s, void *arg);

/* Options of serving; zero is the default of each. */
typedef struct coil_serve_opts {
    /* Accepting pauses while so many connections are open; 0: no limit. */
    size_t connections_max;
    /* On cancel: how long the handlers may go on before they are cancelled too; 0: 5 s; negative: not at
     * all. */
    coil_dur grace;
    /* Told of every error that ends no more than one connection, or an attempt to take one: a handler's
     * result, a close that lost bytes, a failed accept. Called in a task of the worker; peer is borrowed
     * for the call, and NULL where there is no connection; err is negative. arg is coil_serve's. NULL:
     * nobody is told. */
    void (*on_error)(void *arg, const coil_addr *peer, int err);
    /* Must be zero. */
    uint64_t reserved[6];
} coil_serve_opts;

/* Serves connections, fn(stream, arg) in a task for each, until the caller is cancelled or out of time. It
 * then stops accepting, gives the handlers their grace, shielded, and cancels those still there; all have
 * ended when it returns.
 * Returns: 0 when all handlers ended within the grace, else how many had to be cancelled.
 * Errors: -EINVAL: l or fn is NULL, or a reserved word is not zero. -EBADF: the listener is being closed; the
 *         handlers end as above first. -ENOMEM: no memory to begin. -ECANCELED, -ETIME: refused on entry.
 *         Running out of descriptors or memory while serving ends nothing: accepting pauses, and on_error is
 *         told.
 * Memory: l stays the caller's and is not closed. arg is the caller's. *o is borrowed until the call returns.
 * Mark: [parks]. Thread: a task. */
COIL_API int coil_serve(coil_listener *l, coil_handler *fn, void *arg, const coil_serve_opts *o);

#ifdef __cplusplus
}
#endif

#endif
