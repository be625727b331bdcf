/* The samples, run as programs: SAMPLES is the directory where they are built, SAMPLES_SOURCE that of their
 * source. */
#include "check.h"
#include "peers.h"

#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>

extern char **environ;

enum { LIMIT_MS = 20000, TEXT_MAX = 4096, MEGABYTE = 1 << 20 };

struct program {
    pid_t pid;
    int out, err;
    char text[TEXT_MAX];      /* what it wrote to stdout */
    char complaint[TEXT_MAX]; /* and to stderr */
    int status;
};

static int64_t now_ms(void) {
    return coil_now().ns / 1000000;
}

static struct program start_with(const char *name, const char *arg, const char *second) {
    struct program p = {.pid = -1};
    int out[2], err[2];
    char path[512];
    posix_spawn_file_actions_t fa;
    snprintf(path, sizeof path, "%s/%s", SAMPLES, name);
    char *argv[] = {path, (char *)(uintptr_t)arg, (char *)(uintptr_t)second, NULL};
    if (pipe2(out, O_CLOEXEC) < 0 || pipe2(err, O_CLOEXEC) < 0) abort();
    posix_spawn_file_actions_init(&fa);
    posix_spawn_file_actions_adddup2(&fa, out[1], STDOUT_FILENO);
    posix_spawn_file_actions_adddup2(&fa, err[1], STDERR_FILENO);
    int failed = posix_spawn(&p.pid, path, &fa, NULL, argv, environ);
    posix_spawn_file_actions_destroy(&fa);
    cr_assert_eq(failed, 0, "%s: %s", path, strerror(failed));
    close(out[1]);
    close(err[1]);
    p.out = out[0];
    p.err = err[0];
    return p;
}

static struct program start(const char *name, const char *arg) {
    return start_with(name, arg, NULL);
}

/* Appends what comes; false at the end, or when the time is over. */
static bool append(int fd, char *text) {
    size_t have = strlen(text);
    struct pollfd p = {.fd = fd, .events = POLLIN};
    if (poll(&p, 1, LIMIT_MS) != 1 || have + 1 >= TEXT_MAX) return false;
    ssize_t n = read(fd, text + have, TEXT_MAX - 1 - have);
    if (n > 0) text[have + (size_t)n] = '\0';
    return n > 0;
}

/* Waits until stdout has the text. */
static bool says(struct program *p, const char *text) {
    while (!strstr(p->text, text)) {
        if (!append(p->out, p->text)) return false;
    }
    return true;
}

/* Reads the rest and waits for the end; one that does not end by itself is killed. */
static void finish(struct program *p) {
    while (append(p->out, p->text)) {
    }
    while (append(p->err, p->complaint)) {
    }
    int64_t end_ms = now_ms() + LIMIT_MS;
    while (waitpid(p->pid, &p->status, WNOHANG) == 0) {
        if (now_ms() >= end_ms) kill(p->pid, SIGKILL);
        usleep(1000);
    }
    close(p->out);
    close(p->err);
}

static bool ended_with(const struct program *p, int code) {
    return WIFEXITED(p->status) && WEXITSTATUS(p->status) == code;
}

/* One line that says what is wrong. */
static bool complains(const struct program *p, const char *about) {
    const char *newline = strchr(p->complaint, '\n');
    return strstr(p->complaint, about) && newline && newline[1] == '\0';
}

struct server {
    struct program p;
    coil_addr a;
    char where[TEXT_MAX];
};

static struct server start_server(const char *arg) {
    struct server s = {.p = start("echo_server", arg)};
    bool up = says(&s.p, "\n") && sscanf(s.p.text, "listening on %s\n", s.where) == 1;
    cr_assert(up, "it said: %s", s.p.text);
    cr_assert_eq(coil_addr_parse(&s.a, s.where), 0, "%s", s.where);
    return s;
}

/* How long it took to end. */
static int64_t stop_server(struct server *s) {
    int64_t began_ms = now_ms();
    kill(s->p.pid, SIGINT);
    finish(&s->p);
    int64_t took_ms = now_ms() - began_ms;
    cr_expect(ended_with(&s->p, 0), "status %#x: %s", (unsigned)s->p.status, s->p.complaint);
    cr_expect_str_eq(s->p.complaint, "");
    return took_ms;
}

static int connected(const struct server *s) {
    int fd = peers_connect(&s->a);
    cr_assert(fd >= 0, "%s", coil_strerror(fd));
    return fd;
}

/* Sends bytes from..to of the pattern and reads as many back. */
static bool echoes(int fd, size_t from, size_t to) {
    static unsigned char got[65536];
    size_t sent = from, read_back = from;
    while (read_back < to) {
        struct pollfd p = {.fd = fd, .events = (short)(POLLIN | (sent < to ? POLLOUT : 0))};
        if (poll(&p, 1, LIMIT_MS) != 1) return false;
        if (p.revents & POLLOUT) {
            unsigned char out[8192];
            size_t n = sizeof out < to - sent ? sizeof out : to - sent;
            for (size_t i = 0; i < n; i++)
                out[i] = (unsigned char)((sent + i) * 2654435761u >> 13);
            ssize_t k = send(fd, out, n, MSG_DONTWAIT | MSG_NOSIGNAL);
            if (k < 0 && errno != EAGAIN) return false;
            if (k > 0) sent += (size_t)k;
        }
        if (p.revents & (POLLIN | POLLHUP | POLLERR)) {
            ssize_t k = recv(fd, got, sizeof got, MSG_DONTWAIT);
            if (k <= 0) return false;
            for (ssize_t i = 0; i < k; i++, read_back++) {
                if (got[i] != (unsigned char)(read_back * 2654435761u >> 13)) return false;
            }
        }
    }
    return read_back == to;
}

/* ---- hello ---- */

Test(flow_samples, hello_says_hello_and_a_second_later_world) {
    int64_t began_ms = now_ms();
    struct program p = start("hello", NULL);
    cr_expect(says(&p, "hello\n"));
    if (now_ms() - began_ms < 900) cr_expect_str_eq(p.text, "hello\n", "world comes later");
    finish(&p);
    cr_expect_geq(now_ms() - began_ms, 1000);
    cr_expect_str_eq(p.text, "hello\nworld\n");
    cr_expect(ended_with(&p, 0), "status %#x", (unsigned)p.status);
}

/* ---- callstack ---- */

/* With libdw there are files and lines; without, offsets. */
Test(flow_samples, callstack_shows_ten_calls_of_factorial_and_who_joins_them) {
    check_needs(LINES_ARE_KNOWN, "names and lines, of which link-time optimisation leaves too few");
    struct program p = start("callstack", NULL);
    finish(&p);
    cr_expect(ended_with(&p, 0), "status %#x: %s", (unsigned)p.status, p.complaint);
    const char *at = p.text;
    char frame[32];
    for (int i = 0; i < 10; i++) {
        snprintf(frame, sizeof frame, "[%d] factorial", i);
        cr_expect_eq(strncmp(at, frame, strlen(frame)), 0, "frame %d of %s", i, p.text);
        const char *where = at + strlen(frame), *end = strchr(at, '\n');
        const char *line = i ? "/callstack.c:11\n" : "/callstack.c:8\n";
        cr_assert_not_null(end, "%s", p.text);
        bool lines = strncmp(where, " at ", 4) == 0;
        cr_expect(lines || strncmp(where, "+0x", 3) == 0, "frame %d of %s", i, p.text);
        if (lines) cr_expect_eq(strncmp(end + 1 - strlen(line), line, strlen(line)), 0, "%s", p.text);
        at = end + 1;
    }
    cr_expect_not_null(strstr(at, "-- joined by main --\n["), "%s", p.text);
    cr_expect_not_null(strstr(at, "] coil_join"), "%s", p.text);
    cr_expect_not_null(strstr(at, "] run"), "%s", p.text);
    cr_expect_not_null(strstr(at, "\nrun result: 3628800\n"), "%s", p.text);
    cr_expect_str_eq(p.complaint, "");
}

/* ---- echo_server and echo_client ---- */

static void check_client(struct program *c) {
    finish(c);
    cr_expect(ended_with(c, 0), "status %#x: %s", (unsigned)c->status, c->complaint);
    cr_expect_str_eq(c->text, "Send: 'hello world!'\nReceived: 'hello world!'\n");
    cr_expect_str_eq(c->complaint, "");
}

static void check_pair(const char *where) {
    struct server s = start_server(where);
    struct program c = start("echo_client", s.where);
    check_client(&c);
    stop_server(&s);
}

Test(flow_samples, the_client_gets_back_what_it_sent) {
    check_pair("127.0.0.1:0");
}

Test(flow_samples, client_and_server_take_unix_addresses_too) {
    char name[64];
    check_pair(peers_abstract(name, "sample"));
}

Test(flow_samples, client_and_server_take_ipv6_addresses_too) {
    if (!peers_have_ipv6()) cr_skip("no IPv6 here");
    check_pair("[::1]:0");
}

Test(flow_samples, without_an_address_they_meet_at_port_8888) {
    struct server s = {.p = start("echo_server", NULL)};
    if (!says(&s.p, "\n")) {
        finish(&s.p);
        cr_assert(complains(&s.p, strerror(EADDRINUSE)), "%s", s.p.complaint);
        cr_skip("port 8888 is taken");
    }
    cr_expect_str_eq(s.p.text, "listening on 127.0.0.1:8888\n");
    struct program c = start("echo_client", NULL);
    check_client(&c);
    stop_server(&s);
}

Test(flow_samples, the_server_serves_several_clients_at_once) {
    struct program c[8];
    struct server s = start_server("127.0.0.1:0");
    int idle = connected(&s);
    for (int i = 0; i < 8; i++)
        c[i] = start("echo_client", s.where);
    for (int i = 0; i < 8; i++)
        check_client(&c[i]);
    close(idle);
    stop_server(&s);
}

Test(flow_samples, a_megabyte_comes_back_unharmed_and_then_the_end) {
    struct server s = start_server("127.0.0.1:0");
    int fd = connected(&s);
    cr_expect(echoes(fd, 0, MEGABYTE));
    shutdown(fd, SHUT_WR);
    cr_expect(peers_sees_end(fd));
    close(fd);
    stop_server(&s);
}

/* ---- signals ---- */

/* Once out of several times: the machine may be busy. The grace is two seconds. */
Test(flow_samples, sigint_without_clients_ends_the_server_at_once) {
    bool at_once = false;
    for (int tries = 0; tries < 10 && !at_once; tries++) {
        struct server s = start_server("127.0.0.1:0");
        at_once = stop_server(&s) < 1900;
        cr_expect_not_null(strstr(s.p.text, "draining\n"));
        cr_expect_null(strstr(s.p.text, "cut off"));
    }
    cr_expect(at_once);
}

Test(flow_samples, sigint_with_an_idle_client_ends_the_server_after_two_seconds) {
    struct server s = start_server("127.0.0.1:0");
    int fd = connected(&s);
    cr_expect(echoes(fd, 0, 1));
    int64_t began_ms = now_ms();
    stop_server(&s);
    cr_expect_geq(now_ms() - began_ms, 1900);
    cr_expect_not_null(strstr(s.p.text, "1 clients had to be cut off\n"));
    cr_expect(peers_sees_end(fd));
    close(fd);
}

Test(flow_samples, a_client_in_the_middle_of_a_transfer_is_served_to_its_end) {
    struct server s = start_server("127.0.0.1:0");
    int fd = connected(&s);
    cr_expect(echoes(fd, 0, MEGABYTE / 2));
    kill(s.p.pid, SIGTERM);
    cr_expect(says(&s.p, "draining\n"));
    cr_expect(echoes(fd, MEGABYTE / 2, MEGABYTE));
    shutdown(fd, SHUT_WR);
    cr_expect(peers_sees_end(fd));
    close(fd);
    finish(&s.p);
    cr_expect(ended_with(&s.p, 0), "status %#x", (unsigned)s.p.status);
    cr_expect_null(strstr(s.p.text, "cut off"));
}

Test(flow_samples, a_second_sigint_while_draining_ends_the_server_at_once) {
    struct server s = start_server("127.0.0.1:0");
    int fd = connected(&s);
    cr_expect(echoes(fd, 0, 1));
    kill(s.p.pid, SIGINT);
    cr_expect(says(&s.p, "draining\n"));
    kill(s.p.pid, SIGINT);
    finish(&s.p);
    cr_expect(WIFSIGNALED(s.p.status) && WTERMSIG(s.p.status) == SIGINT, "status %#x", (unsigned)s.p.status);
    close(fd);
}

/* ---- gather, timeout, race ---- */

static void check_text(const char *name, const char *text) {
    struct program p = start(name, NULL);
    finish(&p);
    cr_expect(ended_with(&p, 0), "%s: status %#x", name, (unsigned)p.status);
    cr_expect_str_eq(p.text, text, "%s says:\n%s", name, p.text);
    cr_expect_str_eq(p.complaint, "");
}

Test(flow_samples, gather_computes_three_factorials_side_by_side) {
    check_text("gather", "Task A: Compute factorial(2), currently i=2...\n"
                         "Task B: Compute factorial(3), currently i=2...\n"
                         "Task C: Compute factorial(4), currently i=2...\n"
                         "this is a void value\n"
                         "Task A: factorial(2) = 2\n"
                         "Task B: Compute factorial(3), currently i=3...\n"
                         "Task C: Compute factorial(4), currently i=3...\n"
                         "Task B: factorial(3) = 6\n"
                         "Task C: Compute factorial(4), currently i=4...\n"
                         "Task C: factorial(4) = 24\n"
                         "2, 6, 24\n");
}

Test(flow_samples, timeout_tells_which_limit_has_passed) {
    char text[512];
    snprintf(text, sizeof text,
             "quick work: done\nslow work: too slow\n"
             "step 1\nstep 2\nstep 3\nthree steps: done\n"
             "step 1\nstep 2\nstep 3\nfour steps: too slow\n"
             "%s: the inner limit\n%s: the outer limit\n"
             "out of time, but it has said goodbye\n",
             coil_strerror(-ETIME), coil_strerror(-ETIME));
    check_text("timeout", text);
}

Test(flow_samples, race_takes_the_first_answer_and_stops_the_others) {
    char text[512];
    snprintf(text, sizeof text, "slow: %s\nthe answer is 42, says quick\nno answer: %s\n",
             coil_strerror(-ECANCELED), coil_strerror(-EHOSTUNREACH));
    check_text("race", text);
}

/* ---- graceful_shutdown ---- */

static struct server start_saving_server(const char *file) {
    struct server s = {.p = start_with("graceful_shutdown", "127.0.0.1:0", file)};
    bool up = says(&s.p, "\n") && sscanf(s.p.text, "listening on %s\n", s.where) == 1;
    cr_assert(up, "it said: %s %s", s.p.text, s.p.complaint);
    cr_assert_eq(coil_addr_parse(&s.a, s.where), 0, "%s", s.where);
    return s;
}

static void check_file(const char *file, const char *text) {
    char got[64] = "";
    FILE *f = fopen(file, "re");
    cr_assert_not_null(f, "%s", file);
    size_t n = fread(got, 1, sizeof got - 1, f);
    cr_expect_eq(n, strlen(text));
    cr_expect_str_eq(got, text);
    fclose(f);
}

Test(flow_samples, a_graceful_shutdown_lets_a_client_finish_and_then_saves_what_it_did) {
    char file[] = "/tmp/coil-test-XXXXXX";
    close(mkstemp(file));
    struct server s = start_saving_server(file);
    int fd = connected(&s);
    cr_expect(echoes(fd, 0, 1000));
    kill(s.p.pid, SIGTERM);
    cr_expect(says(&s.p, "draining\n"));
    cr_expect(echoes(fd, 1000, 3000), "it is served to its end");
    shutdown(fd, SHUT_WR);
    cr_expect(peers_sees_end(fd));
    close(fd);
    finish(&s.p);
    cr_expect(ended_with(&s.p, 0), "status %#x: %s", (unsigned)s.p.status, s.p.complaint);
    cr_expect_not_null(strstr(s.p.text, "draining\nserved 3000 bytes, saved 3000\n"), "%s", s.p.text);
    cr_expect_str_eq(s.p.complaint, "");
    check_file(file, "3000\n");
    unlink(file);
}

Test(flow_samples, a_graceful_shutdown_cuts_an_idle_client_off_after_its_grace_and_saves) {
    char file[] = "/tmp/coil-test-XXXXXX";
    close(mkstemp(file));
    struct server s = start_saving_server(file);
    int fd = connected(&s);
    cr_expect(echoes(fd, 0, 10));
    stop_server(&s);
    cr_expect_not_null(strstr(s.p.text, "1 clients were cut off\nserved 10 bytes, saved 10\n"), "%s",
                       s.p.text);
    cr_expect(peers_sees_end(fd));
    close(fd);
    check_file(file, "10\n");
    unlink(file);
}

/* ---- what goes wrong ---- */

static void check_complaint(const char *name, const char *arg, const char *about) {
    struct program p = start(name, arg);
    finish(&p);
    cr_expect(ended_with(&p, 1), "%s %s: status %#x", name, arg, (unsigned)p.status);
    cr_expect(complains(&p, about), "%s %s: %s", name, arg, p.complaint);
}

Test(flow_samples, an_address_that_cannot_be_had_is_said_on_stderr_with_status_1) {
    coil_addr a;
    char where[64];
    cr_assert_eq(coil_addr_parse(&a, "127.0.0.1:0"), 0);
    int fd = peers_listen(&a, 1);
    cr_assert_gt(coil_addr_format(&a, where, sizeof where), 0);
    check_complaint("echo_server", where, strerror(EADDRINUSE));
    close(fd);
    check_complaint("echo_server", "nowhere", strerror(EINVAL));
    check_complaint("echo_client", "nowhere", strerror(EINVAL));
    check_complaint("echo_client", where, strerror(ECONNREFUSED));
}

Test(flow_samples, a_client_whose_server_hangs_up_says_so) {
    coil_addr a;
    char where[64];
    cr_assert_eq(coil_addr_parse(&a, "127.0.0.1:0"), 0);
    int listening = peers_listen(&a, 1);
    cr_assert_gt(coil_addr_format(&a, where, sizeof where), 0);
    struct program p = start("echo_client", where);
    int fd = accept(listening, NULL, NULL);
    char buf[12];
    cr_expect_eq(recv(fd, buf, sizeof buf, MSG_WAITALL), 12);
    close(fd);
    finish(&p);
    cr_expect(ended_with(&p, 1), "status %#x", (unsigned)p.status);
    cr_expect(complains(&p, "echo_client: "), "%s", p.complaint);
    close(listening);
}

/* ---- producer_consumer ---- */

Test(flow_samples, producers_and_consumers_share_a_channel_and_lose_nothing) {
    struct program p = start("producer_consumer", NULL);
    finish(&p);
    cr_expect(ended_with(&p, 0), "status %#x: %s", (unsigned)p.status, p.complaint);
    cr_expect_str_eq(p.complaint, "");
    cr_expect_str_eq(p.text, "Anna: item 1 is on its way\n"
                             "Anna: item 2 is on its way\n"
                             "Anna: item 3 is on its way\n"
                             "Anna: item 4 is on its way\n"
                             "Cleo: has item 1 of Anna\n"
                             "Cleo: has item 3 of Anna\n"
                             "Cleo: has item 4 of Anna\n"
                             "Cleo: has item 1 of Bert\n"
                             "Dora: has item 2 of Anna\n"
                             "Bert: item 1 is on its way\n"
                             "Bert: item 2 is on its way\n"
                             "Bert: item 3 is on its way\n"
                             "Bert: item 4 is on its way\n"
                             "Cleo: has item 2 of Bert\n"
                             "Cleo: has item 4 of Bert\n"
                             "Dora: has item 3 of Bert\n"
                             "Cleo: done, 6 items\n"
                             "Dora: done, 2 items\n");
}

/* ---- their size ---- */

static int lines_of(const char *path) {
    FILE *f = fopen(path, "re");
    int lines = 0;
    for (int c; f && (c = getc(f)) != EOF;)
        lines += c == '\n';
    if (f) fclose(f);
    return lines;
}

Test(flow_samples, each_has_less_than_120_lines) {
    glob_t files;
    cr_assert_eq(glob(SAMPLES_SOURCE "/*.c", 0, NULL, &files), 0);
    cr_expect_geq(files.gl_pathc, 3u);
    for (size_t i = 0; i < files.gl_pathc; i++) {
        int lines = lines_of(files.gl_pathv[i]);
        cr_expect(lines > 0 && lines < 120, "%s: %d lines", files.gl_pathv[i], lines);
    }
    globfree(&files);
}
