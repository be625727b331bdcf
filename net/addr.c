/* Addresses as text. The grammar stands in coil/net.h; each form has one reader and one writer, and what a
 * reader accepts its writer turns into text that reads back to the same bytes. */
#include <arpa/inet.h>
#include <errno.h>
#include <net/if.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <coil/net.h>

#include "base.h"

#define UNIX_PREFIX "unix:"
#define PATH_OFFSET offsetof(struct sockaddr_un, sun_path)
#define PATH_BYTES_MAX (sizeof(((struct sockaddr_un *)0)->sun_path))

/* A byte costs at most four characters; the longest text is a path that fills sun_path. */
_Static_assert(COIL_ADDR_TEXT_MAX >= sizeof(UNIX_PREFIX) + 4 * PATH_BYTES_MAX, "every address has room");

/* Decimal without sign, leading zeros or anything behind it. */
static bool parse_decimal(const char *text, size_t n, uint64_t max, uint64_t *out) {
    if (n == 0 || (n > 1 && text[0] == '0')) return false;
    uint64_t value = 0;
    for (size_t i = 0; i < n; i++) {
        if (text[i] < '0' || text[i] > '9') return false;
        value = value * 10 + (uint64_t)(text[i] - '0');
        if (value > max) return false;
    }
    *out = value;
    return true;
}

static bool parse_port(const char *text, in_port_t *port) {
    uint64_t value;
    if (!parse_decimal(text, strlen(text), UINT16_MAX, &value)) return false;
    *port = htons((uint16_t)value);
    return true;
}

static bool all_digits(const char *text, size_t n) {
    for (size_t i = 0; i < n; i++) {
        if (text[i] < '0' || text[i] > '9') return false;
    }
    return n > 0;
}

/* if_nametoindex is not used: asked by a privileged process for a name that does not exist, the kernel waits
 * for a module loader before it says no. Binding a socket of our own to the name waits for nobody. */
static int interface_index(const char *name, size_t n, uint32_t *index) {
    if (n >= IF_NAMESIZE) return -ENODEV;
    /* A local socket: kernels without IPv6 have it too. */
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0) return -errno;
    int found = 0;
    socklen_t len = sizeof found;
    int err = setsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, name, (socklen_t)n);
    if (err == 0) err = getsockopt(fd, SOL_SOCKET, SO_BINDTOIFINDEX, &found, &len);
    err = err < 0 ? -errno : 0;
    close(fd);
    if (err == 0 && found <= 0) err = -ENODEV;
    *index = (uint32_t)found;
    return err;
}

static int parse_scope(const char *text, size_t n, uint32_t *scope) {
    if (n == 0) return -EINVAL;
    if (!all_digits(text, n)) return interface_index(text, n, scope);
    uint64_t value;
    if (!parse_decimal(text, n, UINT32_MAX, &value) || value == 0) return -EINVAL;
    *scope = (uint32_t)value;
    return 0;
}

/* inet_pton wants its text terminated; everything longer than `max` characters is no address. */
static bool parse_host(int family, const char *text, size_t n, size_t max, void *out) {
    char host[INET6_ADDRSTRLEN];
    if (n >= max) return false;
    memcpy(host, text, n);
    host[n] = '\0';
    return inet_pton(family, host, out) == 1;
}

static int parse_ipv4(coil_addr *out, const char *text) {
    struct sockaddr_in *in = &out->u.in;
    const char *colon = strchr(text, ':');
    if (!colon || !parse_port(colon + 1, &in->sin_port)) return -EINVAL;
    if (!parse_host(AF_INET, text, (size_t)(colon - text), INET_ADDRSTRLEN, &in->sin_addr)) return -EINVAL;
    in->sin_family = AF_INET;
    out->len = sizeof *in;
    return 0;
}

static int parse_ipv6(coil_addr *out, const char *text) {
    struct sockaddr_in6 *in6 = &out->u.in6;
    const char *host = text + 1;
    const char *end = strchr(host, ']');
    if (!end || end[1] != ':' || !parse_port(end + 2, &in6->sin6_port)) return -EINVAL;
    const char *percent = memchr(host, '%', (size_t)(end - host));
    const char *host_end = percent ? percent : end;
    size_t host_n = (size_t)(host_end - host);
    if (!parse_host(AF_INET6, host, host_n, INET6_ADDRSTRLEN, &in6->sin6_addr)) return -EINVAL;
    if (percent) {
        int err = parse_scope(percent + 1, (size_t)(end - percent - 1), &in6->sin6_scope_id);
        if (err < 0) return err;
    }
    in6->sin6_family = AF_INET6;
    out->len = sizeof *in6;
    return 0;
}

/* The unspecified IPv6 address takes connections of both families. */
static int parse_any(coil_addr *out, const char *text) {
    if (!parse_port(text + 1, &out->u.in6.sin6_port)) return -EINVAL;
    out->u.in6.sin6_family = AF_INET6;
    out->len = sizeof out->u.in6;
    return 0;
}

static int hex_digit(char c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
}

/* Takes one byte of a Unix name off the text, whose end the caller has looked for. -1: a lone backslash. */
static int take_byte(const char **text) {
    const char *t = *text;
    if (t[0] != '\\') {
        *text = t + 1;
        return (unsigned char)t[0];
    }
    if (t[1] != 'x' || hex_digit(t[2]) < 0 || hex_digit(t[3]) < 0) return -1;
    *text = t + 4;
    return hex_digit(t[2]) * 16 + hex_digit(t[3]);
}

static int parse_unix(coil_addr *out, const char *text) {
    struct sockaddr_un *un = &out->u.un;
    bool abstract = *text == '@';
    bool too_long = false;
    size_t n = 0;
    if (abstract) {
        text++;
        n = 1; /* The zero byte that makes a name abstract. */
    }
    /* A path leaves a byte for its zero, an abstract name has none. The rest of a text that is too long is
     * still read, so that what is malformed is always called so. */
    size_t max = PATH_BYTES_MAX - (abstract ? 0 : 1);
    while (*text) {
        int byte = take_byte(&text);
        if (byte < 0 || (byte == 0 && !abstract)) return -EINVAL;
        too_long |= n == max;
        if (!too_long) un->sun_path[n++] = (char)byte;
    }
    if (too_long) return -ENAMETOOLONG;
    un->sun_family = AF_UNIX;
    /* Nothing at all is an address without a name; a path counts its terminating zero, as the kernel does. */
    out->len = (socklen_t)(PATH_OFFSET + (n == 0 || abstract ? n : n + 1));
    return 0;
}

static int parse(coil_addr *out, const char *text) {
    size_t prefix_n = strlen(UNIX_PREFIX);
    if (strncmp(text, UNIX_PREFIX, prefix_n) == 0) return parse_unix(out, text + prefix_n);
    if (text[0] == '[') return parse_ipv6(out, text);
    if (text[0] == ':') return parse_any(out, text);
    return parse_ipv4(out, text);
}

int coil_addr_parse(coil_addr *out, const char *text) {
    if (!out) return -EINVAL;
    memset(out, 0, sizeof *out);
    int err = text ? parse(out, text) : -EINVAL;
    if (err < 0) memset(out, 0, sizeof *out);
    return err;
}

/* The writers fill a buffer of COIL_ADDR_TEXT_MAX bytes, in which every address has room; they return the
 * length. */
static int write_ipv4(const coil_addr *a, char *text) {
    char host[INET_ADDRSTRLEN];
    if (a->len < sizeof a->u.in) return -EINVAL;
    inet_ntop(AF_INET, &a->u.in.sin_addr, host, sizeof host);
    return snprintf(text, COIL_ADDR_TEXT_MAX, "%s:%u", host, ntohs(a->u.in.sin_port));
}

/* A name that would not read back as this interface (a number, a bracket in it) is not used. */
static bool interface_name(uint32_t index, char name[IF_NAMESIZE]) {
    if (!if_indextoname(index, name) || all_digits(name, strlen(name))) return false;
    for (const char *c = name; *c; c++) {
        if (*c <= ' ' || *c > '~' || *c == ']') return false;
    }
    return true;
}

static int write_ipv6(const coil_addr *a, char *text) {
    const struct sockaddr_in6 *in6 = &a->u.in6;
    char host[INET6_ADDRSTRLEN], name[IF_NAMESIZE], scope[IF_NAMESIZE + 1] = "";
    if (a->len < sizeof *in6) return -EINVAL;
    inet_ntop(AF_INET6, &in6->sin6_addr, host, sizeof host);
    if (in6->sin6_scope_id != 0) {
        if (!interface_name(in6->sin6_scope_id, name)) {
            snprintf(name, sizeof name, "%u", in6->sin6_scope_id);
        }
        snprintf(scope, sizeof scope, "%%%s", name);
    }
    return snprintf(text, COIL_ADDR_TEXT_MAX, "[%s%s]:%u", host, scope, ntohs(in6->sin6_port));
}

static size_t write_byte(char *text, unsigned char byte, bool escape) {
    static const char hex[] = "0123456789abcdef";
    if (!escape && byte >= ' ' && byte <= '~' && byte != '\\') {
        *text = (char)byte;
        return 1;
    }
    const char out[] = {'\\', 'x', hex[byte >> 4], hex[byte & 15]};
    memcpy(text, out, sizeof out);
    return sizeof out;
}

static int write_unix(const coil_addr *a, char *text) {
    /* For a path that fills sun_path the kernel counts a zero that is not there. */
    if (a->len < PATH_OFFSET || a->len > sizeof a->u.un + 1) return -EINVAL;
    const char *name = a->u.un.sun_path;
    size_t n = MIN(a->len - PATH_OFFSET, PATH_BYTES_MAX);
    bool abstract = n > 0 && name[0] == '\0';
    size_t length = strlen(UNIX_PREFIX);
    memcpy(text, UNIX_PREFIX, length);
    if (abstract) {
        text[length++] = '@';
    } else {
        n = strnlen(name, n);
    }
    for (size_t i = abstract ? 1 : 0; i < n; i++) {
        bool looks_abstract = i == 0 && name[i] == '@';
        length += write_byte(text + length, (unsigned char)name[i], looks_abstract);
    }
    text[length] = '\0';
    return (int)length;
}

static int write_addr(const coil_addr *a, char *text) {
    switch (a->u.sa.sa_family) {
    case AF_INET:
        return write_ipv4(a, text);
    case AF_INET6:
        return write_ipv6(a, text);
    case AF_UNIX:
        return write_unix(a, text);
    default:
        return -EAFNOSUPPORT;
    }
}

int coil_addr_format(const coil_addr *a, char *text, size_t n) {
    char whole[COIL_ADDR_TEXT_MAX];
    if (!text) return -EINVAL;
    if (n > 0) text[0] = '\0';
    int length = a ? write_addr(a, whole) : -EINVAL;
    if (length < 0) return length;
    if ((size_t)length >= n) return -ENOSPC;
    memcpy(text, whole, (size_t)length + 1);
    return length;
}
