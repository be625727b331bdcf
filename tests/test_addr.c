/* Addresses as text: the grammar, its limits, and that text and bytes lead to each other. */
#include "check.h"

#include <arpa/inet.h>
#include <errno.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <coil/net.h>

#define PATH_OFFSET offsetof(struct sockaddr_un, sun_path)
/* The last seven of a hundred and seven bytes are written out, so that a length that is off by one shows. */
#define TEN "0123456789"
#define HUNDRED TEN TEN TEN TEN TEN TEN TEN TEN TEN TEN

/* Texts that are their own canonical form. */
static const char *const canonical[] = {
    "127.0.0.1:80",
    "0.0.0.0:0",
    "255.255.255.255:65535",
    "[::1]:80",
    "[::]:0",
    "[2001:db8::8:800:200c:417a]:65535",
    "[::ffff:10.1.2.3]:1",
    "[fe80::1%lo]:80",
    "[fe80::1%4294967295]:80",
    "unix:",
    "unix:/run/x",
    "unix:relative/x",
    "unix:/with space",
    "unix:/back\\x5cslash",
    "unix:\\x40not/abstract",
    "unix:/an@inside",
    "unix:/\\xc3\\xa4\\x0a",
    "unix:@",
    "unix:@name",
    "unix:@@name",
    "unix:@a\\x00b\\x00",
    "unix:@\\x00\\xff\\x7f",
    "unix:/" HUNDRED "abcdef",
    "unix:@" HUNDRED "abcdefg",
};

/* Texts that are accepted, and the canonical form of the same address. */
static const char *const aliases[][2] = {
    {":80", "[::]:80"},
    {":0", "[::]:0"},
    {"[0:0:0:0:0:0:0:1]:80", "[::1]:80"},
    {"[FE80::A]:80", "[fe80::a]:80"},
    {"[::1%1]:80", "[::1%lo]:80"},
    {"[0000:0000:0000:0000:0000:ffff:255.255.255.255]:1", "[::ffff:255.255.255.255]:1"},
    {"unix:\\x2frun\\x2Fx", "unix:/run/x"},
    {"unix:@\\x41\xc3\xa4", "unix:@A\\xc3\\xa4"},
};

static const struct {
    const char *text;
    int err;
} refused[] = {
    {"", -EINVAL},
    {"80", -EINVAL},
    {":", -EINVAL},
    {"::", -EINVAL},
    {":-1", -EINVAL},
    {":+1", -EINVAL},
    {": 1", -EINVAL},
    {":0x50", -EINVAL},
    {":080", -EINVAL},
    {":00", -EINVAL},
    {":65536", -EINVAL},
    {":99999999999999999999999", -EINVAL},
    {"127.0.0.1", -EINVAL},
    {"127.0.0.1:", -EINVAL},
    {"127.0.0.1:80 ", -EINVAL},
    {" 127.0.0.1:80", -EINVAL},
    {"127.0.0.1:80\n", -EINVAL},
    {"127.0.0.1:80:80", -EINVAL},
    {"127.0.0.1:8a", -EINVAL},
    {"127.0.0.1:65536", -EINVAL},
    {"127.0.0.256:80", -EINVAL},
    {"127.0.0.01:80", -EINVAL},
    {"127.0.1:80", -EINVAL},
    {"127.0.0.1.1:80", -EINVAL},
    {"0x7f.0.0.1:80", -EINVAL},
    {"2130706433:80", -EINVAL},
    {"127.0.0.1%lo:80", -EINVAL},
    {"localhost:80", -EINVAL},
    {"example.org:http", -EINVAL},
    {"::1:80", -EINVAL},
    {"[]:80", -EINVAL},
    {"[", -EINVAL},
    {"[::1", -EINVAL},
    {"[::1]", -EINVAL},
    {"[::1]80", -EINVAL},
    {"[::1]:", -EINVAL},
    {"[::1]:80x", -EINVAL},
    {"[::1]]:80", -EINVAL},
    {"[[::1]]:80", -EINVAL},
    {"[::1::]:80", -EINVAL},
    {"[12345::]:80", -EINVAL},
    {"[1:2:3:4:5:6:7]:80", -EINVAL},
    {"[1:2:3:4:5:6:7:8:9]:80", -EINVAL},
    {"[127.0.0.1]:80", -EINVAL},
    {"[0000:0000:0000:0000:0000:0000:0000:0000:0000:0000]:80", -EINVAL},
    {"[0000:0000:0000:0000:0000:ffff:255.255.255.2550]:80", -EINVAL},
    {"[%lo]:80", -EINVAL},
    {"[fe80::1%]:80", -EINVAL},
    {"[fe80::1%0]:80", -EINVAL},
    {"[fe80::1%01]:80", -EINVAL},
    {"[fe80::1%4294967296]:80", -EINVAL},
    {"[fe80::1%lo]:", -EINVAL},
    {"[fe80::1%nosuchif0]:80", -ENODEV},
    {"[fe80::1%lo ]:80", -ENODEV},
    {"[fe80::1%lo%lo]:80", -ENODEV},
    {"[fe80::1%aninterfacewithalongname]:80", -ENODEV},
    {"unix", -EINVAL},
    {"UNIX:/run/x", -EINVAL},
    {" unix:/run/x", -EINVAL},
    {"unix:/a\\", -EINVAL},
    {"unix:/a\\\\", -EINVAL},
    {"unix:/a\\n", -EINVAL},
    {"unix:/a\\x", -EINVAL},
    {"unix:/a\\x4", -EINVAL},
    {"unix:/a\\x4g", -EINVAL},
    {"unix:/a\\X41", -EINVAL},
    {"unix:/a\\x00b", -EINVAL},
    {"unix:\\x00name", -EINVAL},
    {"unix:@\\x0", -EINVAL},
    {"unix:/" HUNDRED "abcdefg", -ENAMETOOLONG},
    {"unix:@" HUNDRED "abcdefgh", -ENAMETOOLONG},
    {"unix:/" HUNDRED HUNDRED, -ENAMETOOLONG},
    {"unix:/" HUNDRED "abcdefg\\", -EINVAL},
};

static bool same(const coil_addr *a, const coil_addr *b) {
    return memcmp(a, b, sizeof *a) == 0;
}

/* Seeded: the same noise on every run. */
static unsigned noise(unsigned *seed) {
    *seed = *seed * 1664525u + 1013904223u;
    return *seed >> 16;
}

/* What is accepted must lead to text and back to the same bytes. Returns whether it was accepted. */
static bool parses_and_comes_back(const char *text) {
    coil_addr a, b, zero;
    char out[COIL_ADDR_TEXT_MAX];
    memset(&zero, 0, sizeof zero);
    memset(&a, 0xee, sizeof a);
    int err = coil_addr_parse(&a, text);
    if (err < 0) {
        cr_expect(err == -EINVAL || err == -ENAMETOOLONG || err == -ENODEV, "'%s': %d", text, err);
        cr_expect(same(&a, &zero), "'%s' was refused and left something behind", text);
        return false;
    }
    int n = coil_addr_format(&a, out, sizeof out);
    cr_assert_eq(n, (int)strlen(out), "'%s' gives %d", text, n);
    cr_assert_eq(coil_addr_parse(&b, out), 0, "'%s' became '%s'", text, out);
    cr_assert(same(&a, &b), "'%s' became '%s', which is another address", text, out);
    return true;
}

static void formats_as(const char *text, const char *expected) {
    coil_addr a;
    char out[COIL_ADDR_TEXT_MAX];
    cr_assert_eq(coil_addr_parse(&a, text), 0, "'%s' was refused", text);
    cr_expect_eq(coil_addr_format(&a, out, sizeof out), (int)strlen(expected), "length of '%s'", text);
    cr_expect_str_eq(out, expected, "'%s' became '%s'", text, out);
}

Test(addr, canonical_text_comes_back_as_it_was) {
    for (size_t i = 0; i < sizeof canonical / sizeof *canonical; i++) {
        formats_as(canonical[i], canonical[i]);
        cr_expect(parses_and_comes_back(canonical[i]));
    }
}

Test(addr, other_spellings_become_canonical) {
    for (size_t i = 0; i < sizeof aliases / sizeof *aliases; i++) {
        formats_as(aliases[i][0], aliases[i][1]);
    }
}

Test(addr, everything_else_is_refused_and_leaves_zeros) {
    coil_addr a, zero;
    memset(&zero, 0, sizeof zero);
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        memset(&a, 0xee, sizeof a);
        int err = coil_addr_parse(&a, refused[i].text);
        cr_expect_eq(err, refused[i].err, "'%s' gives %d", refused[i].text, err);
        cr_expect(same(&a, &zero), "'%s' left something behind", refused[i].text);
    }
    cr_expect_eq(coil_addr_parse(NULL, ":80"), -EINVAL);
    cr_expect_eq(coil_addr_parse(&a, NULL), -EINVAL);
    cr_expect(same(&a, &zero));
}

Test(addr, internet_addresses_have_the_right_bytes) {
    coil_addr a;
    cr_assert_eq(coil_addr_parse(&a, "1.2.3.4:258"), 0);
    cr_expect_eq(a.len, sizeof(struct sockaddr_in));
    cr_expect_eq(a.u.in.sin_family, AF_INET);
    cr_expect_eq(a.u.in.sin_port, htons(258));
    cr_expect_eq(a.u.in.sin_addr.s_addr, htonl(0x01020304));

    static const unsigned char host[16] = {0xfe, 0x80, [15] = 9};
    cr_assert_eq(coil_addr_parse(&a, "[fe80::9%7]:443"), 0);
    cr_expect_eq(a.len, sizeof(struct sockaddr_in6));
    cr_expect_eq(a.u.in6.sin6_family, AF_INET6);
    cr_expect_eq(a.u.in6.sin6_port, htons(443));
    cr_expect_eq(a.u.in6.sin6_scope_id, 7u);
    cr_expect_eq(a.u.in6.sin6_flowinfo, 0u);
    cr_expect_arr_eq(&a.u.in6.sin6_addr, host, sizeof host);

    cr_assert_eq(coil_addr_parse(&a, "[fe80::9%lo]:443"), 0);
    cr_expect_eq(a.u.in6.sin6_scope_id, if_nametoindex("lo"));
}

Test(addr, unix_addresses_have_the_right_bytes_and_length) {
    coil_addr a;
    cr_assert_eq(coil_addr_parse(&a, "unix:/run/x"), 0);
    cr_expect_eq(a.u.un.sun_family, AF_UNIX);
    cr_expect_str_eq(a.u.un.sun_path, "/run/x");
    cr_expect_eq(a.len, PATH_OFFSET + sizeof "/run/x");

    cr_assert_eq(coil_addr_parse(&a, "unix:@n\\x00\\xfe"), 0);
    cr_expect_arr_eq(a.u.un.sun_path, "\0n\0\xfe", 4);
    cr_expect_eq(a.len, PATH_OFFSET + 4);

    cr_assert_eq(coil_addr_parse(&a, "unix:"), 0);
    cr_expect_eq(a.u.un.sun_family, AF_UNIX);
    cr_expect_eq(a.len, PATH_OFFSET);
}

/* Every byte in every place of an abstract name, and every byte but zero in a path. */
Test(addr, every_byte_of_a_unix_name_comes_back) {
    for (int byte = 0; byte < 256; byte++) {
        for (size_t at = 0; at < 3; at++) {
            for (int abstract = 0; abstract < 2; abstract++) {
                coil_addr a, b;
                char text[COIL_ADDR_TEXT_MAX];
                if (!abstract && byte == 0) continue;
                memset(&a, 0, sizeof a);
                a.u.un.sun_family = AF_UNIX;
                memcpy(a.u.un.sun_path + abstract, "xyz", 3);
                a.u.un.sun_path[at + (size_t)abstract] = (char)byte;
                a.len = (socklen_t)(PATH_OFFSET + 4);
                cr_assert_gt(coil_addr_format(&a, text, sizeof text), 0, "byte %d", byte);
                for (const char *c = text; *c; c++)
                    cr_expect(*c >= ' ' && *c <= '~', "byte %d: not printable", byte);
                cr_assert_eq(coil_addr_parse(&b, text), 0, "'%s'", text);
                cr_expect(same(&a, &b), "'%s' is another address", text);
            }
        }
    }
}

Test(addr, a_text_of_any_length_fits_or_says_so) {
    for (size_t i = 0; i < sizeof canonical / sizeof *canonical; i++) {
        coil_addr a;
        char out[COIL_ADDR_TEXT_MAX + 1];
        size_t length = strlen(canonical[i]);
        cr_assert_eq(coil_addr_parse(&a, canonical[i]), 0);
        for (size_t n = 0; n <= length + 1; n++) {
            memset(out, '#', sizeof out);
            int err = coil_addr_format(&a, out, n);
            cr_expect_eq(err, n > length ? (int)length : -ENOSPC, "'%s' in %zu bytes", canonical[i], n);
            cr_expect_eq(out[n], '#', "'%s' in %zu bytes wrote past the end", canonical[i], n);
            if (n > 0 && n <= length) cr_expect_eq(out[0], '\0', "'%s' in %zu bytes", canonical[i], n);
        }
    }
}

Test(addr, the_longest_text_has_room) {
    coil_addr a;
    char out[COIL_ADDR_TEXT_MAX];
    memset(&a, 0, sizeof a);
    a.u.un.sun_family = AF_UNIX;
    memset(a.u.un.sun_path, 0xff, sizeof a.u.un.sun_path);
    a.len = sizeof a.u.un;
    cr_expect_eq(coil_addr_format(&a, out, sizeof out), 5 + 4 * 108);
    cr_expect_eq(coil_addr_parse(&a, out), -ENAMETOOLONG, "a path without a zero is not read back");

    memset(&a, 0xff, sizeof a);
    a.u.in6.sin6_family = AF_INET6;
    a.len = sizeof a.u.in6;
    cr_expect_gt(coil_addr_format(&a, out, sizeof out), 0);
    cr_expect_str_eq(out, "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff%4294967295]:65535");
}

Test(addr, what_has_no_text_is_refused) {
    char out[COIL_ADDR_TEXT_MAX] = "#";
    coil_addr a;
    memset(&a, 0, sizeof a);
    cr_expect_eq(coil_addr_format(&a, out, sizeof out), -EAFNOSUPPORT);
    cr_expect_str_eq(out, "");
    a.len = sizeof a.u;
    a.u.sa.sa_family = AF_NETLINK;
    cr_expect_eq(coil_addr_format(&a, out, sizeof out), -EAFNOSUPPORT);
    a.u.sa.sa_family = AF_INET;
    a.len = sizeof a.u.in - 1;
    cr_expect_eq(coil_addr_format(&a, out, sizeof out), -EINVAL);
    a.u.sa.sa_family = AF_INET6;
    a.len = sizeof a.u.in6 - 1;
    cr_expect_eq(coil_addr_format(&a, out, sizeof out), -EINVAL);
    a.u.sa.sa_family = AF_UNIX;
    a.len = PATH_OFFSET - 1;
    cr_expect_eq(coil_addr_format(&a, out, sizeof out), -EINVAL);
    a.len = sizeof a.u.un + 2;
    cr_expect_eq(coil_addr_format(&a, out, sizeof out), -EINVAL);
    cr_expect_eq(coil_addr_format(NULL, out, sizeof out), -EINVAL);
    cr_expect_eq(coil_addr_format(&a, NULL, sizeof out), -EINVAL);
}

Test(addr, a_scope_is_written_by_its_interface_or_its_number) {
    coil_addr a;
    char out[COIL_ADDR_TEXT_MAX], expected[COIL_ADDR_TEXT_MAX], name[IF_NAMESIZE];
    cr_assert_eq(coil_addr_parse(&a, "[fe80::1]:80"), 0);
    for (uint32_t index = 1; index < 100; index++) {
        a.u.in6.sin6_scope_id = index;
        if (if_indextoname(index, name))
            snprintf(expected, sizeof expected, "[fe80::1%%%s]:80", name);
        else
            snprintf(expected, sizeof expected, "[fe80::1%%%u]:80", index);
        cr_expect_gt(coil_addr_format(&a, out, sizeof out), 0);
        cr_expect_str_eq(out, expected, "'%s', not '%s'", out, expected);
        cr_expect(parses_and_comes_back(out));
    }
}

Test(addr, asking_for_interfaces_leaves_no_descriptor) {
    int before = check_fd_count();
    coil_addr a;
    for (int i = 0; i < 100; i++) {
        cr_assert_eq(coil_addr_parse(&a, "[fe80::1%lo]:80"), 0);
        cr_assert_eq(coil_addr_parse(&a, "[fe80::1%nosuchif0]:80"), -ENODEV);
    }
    cr_expect_eq(check_fd_count(), before);
}

/* The limit holds for the calls alone: the test's own machinery needs descriptors too. */
Test(addr, without_a_free_descriptor_only_an_interface_name_is_refused) {
    struct rlimit before, none;
    coil_addr by_name, by_number, zero;
    memset(&zero, 0, sizeof zero);
    cr_assert_eq(getrlimit(RLIMIT_NOFILE, &before), 0);
    none = before;
    none.rlim_cur = 0;
    cr_assert_eq(setrlimit(RLIMIT_NOFILE, &none), 0);
    int name_err = coil_addr_parse(&by_name, "[fe80::1%lo]:80");
    int number_err = coil_addr_parse(&by_number, "[fe80::1%1]:80");
    cr_assert_eq(setrlimit(RLIMIT_NOFILE, &before), 0);
    cr_expect_eq(name_err, -EMFILE);
    cr_expect(same(&by_name, &zero));
    cr_expect_eq(number_err, 0);
}

Test(addr, every_prefix_of_an_address_is_an_address_or_refused) {
    for (size_t i = 0; i < sizeof canonical / sizeof *canonical; i++) {
        char text[COIL_ADDR_TEXT_MAX];
        for (size_t n = 0; n <= strlen(canonical[i]); n++) {
            memcpy(text, canonical[i], n);
            text[n] = '\0';
            parses_and_comes_back(text);
        }
    }
}

/* One byte of a good text changed, left out or doubled: near misses reach further than noise. */
Test(addr, damaged_addresses_are_addresses_or_refused) {
    unsigned seed = 42;
    for (int round = 0; round < 20000; round++) {
        char text[COIL_ADDR_TEXT_MAX + 1];
        const char *from = canonical[noise(&seed) % (sizeof canonical / sizeof *canonical)];
        size_t n = strlen(from), at = noise(&seed) % (n + 1);
        memset(text, 0, sizeof text);
        memcpy(text, from, n);
        switch (noise(&seed) % 3) {
        case 0:
            text[at] = (char)noise(&seed);
            break;
        case 1:
            memmove(text + at, text + at + 1, n - at + (at < n ? 0 : 1));
            break;
        default:
            memmove(text + at + 1, text + at, n - at);
            break;
        }
        parses_and_comes_back(text);
    }
}

Test(addr, noise_never_crashes_and_is_sometimes_an_address) {
    static const char alphabet[] = "0123456789abcdef:.[]%@\\x/unix:lo";
    unsigned seed = 7;
    int accepted = 0;
    for (int round = 0; round < 50000; round++) {
        char text[64];
        size_t n = noise(&seed) % (sizeof text - 1), i = 0;
        bool wild = noise(&seed) % 2;
        if (noise(&seed) % 3 == 0) i = (size_t)snprintf(text, sizeof text, "unix:");
        for (; i < n; i++)
            text[i] = wild ? (char)noise(&seed) : alphabet[noise(&seed) % (sizeof alphabet - 1)];
        text[i] = '\0';
        accepted += parses_and_comes_back(text);
    }
    cr_expect_gt(accepted, 100, "only %d texts were accepted: the noise tests nothing", accepted);
}

/* A text without its terminating zero in reach would be read past its end: the sanitizers see it here. */
Test(addr, texts_of_exact_size_are_not_read_past_their_end) {
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        coil_addr a;
        char *text = strdup(refused[i].text);
        cr_assert_not_null(text);
        cr_expect_eq(coil_addr_parse(&a, text), refused[i].err);
        free(text);
    }
}

/* Binds a socket to `text` and formats what the kernel says it is bound to. */
static void bind_and_tell(const char *text, char *out, size_t n) {
    coil_addr a, bound;
    cr_assert_eq(coil_addr_parse(&a, text), 0);
    int fd = socket(a.u.sa.sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    cr_assert_geq(fd, 0);
    cr_assert_eq(bind(fd, &a.u.sa, a.len), 0, "bind to '%s'", text);
    memset(&bound, 0, sizeof bound);
    bound.len = sizeof bound.u;
    cr_assert_eq(getsockname(fd, &bound.u.sa, &bound.len), 0);
    cr_assert_gt(coil_addr_format(&bound, out, n), 0);
    close(fd);
}

Test(addr, the_kernel_gives_back_the_same_unix_names) {
    char text[COIL_ADDR_TEXT_MAX], out[COIL_ADDR_TEXT_MAX], path[64];
    snprintf(text, sizeof text, "unix:@coil.test.%d\\x00\\x01\\xff\\x00", (int)getpid());
    bind_and_tell(text, out, sizeof out);
    cr_expect_str_eq(out, text);
    snprintf(path, sizeof path, "/tmp/coil.test.%d", (int)getpid());
    snprintf(text, sizeof text, "unix:%s", path);
    bind_and_tell(text, out, sizeof out);
    cr_expect_eq(unlink(path), 0);
    cr_expect_str_eq(out, text);
}

Test(addr, a_socket_without_a_name_has_a_text) {
    int fds[2];
    char out[COIL_ADDR_TEXT_MAX];
    coil_addr a;
    memset(&a, 0, sizeof a);
    a.len = sizeof a.u;
    cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
    cr_assert_eq(getpeername(fds[0], &a.u.sa, &a.len), 0);
    cr_expect_eq(coil_addr_format(&a, out, sizeof out), 5);
    cr_expect_str_eq(out, "unix:");
    close(fds[0]);
    close(fds[1]);
}

/* A path that fills sun_path: the kernel counts a zero behind it, one byte more than the structure has. */
Test(addr, a_path_without_room_for_its_zero_has_a_text) {
    coil_addr a;
    char out[COIL_ADDR_TEXT_MAX];
    memset(&a, 0, sizeof a);
    a.u.un.sun_family = AF_UNIX;
    memset(a.u.un.sun_path, 'p', sizeof a.u.un.sun_path);
    a.len = sizeof a.u.un + 1;
    cr_expect_eq(coil_addr_format(&a, out, sizeof out), 5 + 108);
}

Test(addr, a_port_alone_takes_both_families) {
    coil_addr a;
    cr_assert_eq(coil_addr_parse(&a, ":0"), 0);
    int fd = socket(a.u.sa.sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int off = 0;
    check_needs(fd >= 0 || errno != EAFNOSUPPORT, "IPv6");
    cr_assert_geq(fd, 0);
    cr_assert_eq(setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off), 0);
    cr_assert_eq(bind(fd, &a.u.sa, a.len), 0);
    cr_assert_eq(listen(fd, 1), 0);
    cr_assert_eq(getsockname(fd, &a.u.sa, &a.len), 0);

    coil_addr v4;
    char text[COIL_ADDR_TEXT_MAX];
    snprintf(text, sizeof text, "127.0.0.1:%u", ntohs(a.u.in6.sin6_port));
    cr_assert_eq(coil_addr_parse(&v4, text), 0);
    int client = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    cr_assert_geq(client, 0);
    cr_expect_eq(connect(client, &v4.u.sa, v4.len), 0, "no IPv4 connection to '%s'", text);
    close(client);
    close(fd);
}
