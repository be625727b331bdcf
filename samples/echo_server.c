/* Echoes whatever its clients send, any number of them, until they end their direction.
 *
 * usage: echo_server [ADDRESS]        (127.0.0.1:8888; also "[::1]:8888", ":8888", "unix:/tmp/echo")
 *
 * SIGINT or SIGTERM ends it politely: no new clients, those that are there have two seconds. A second one,
 * meanwhile, ends it at once. */
#include <coil/coil.h>
#include <signal.h>
#include <stdio.h>

static int echo(coil_stream *s, void *arg) {
    (void)arg;
    char buf[4096];
    ssize_t n;
    while ((n = coil_stream_read(s, buf, sizeof buf)) > 0) {
        int err = coil_stream_write(s, buf, (size_t)n); /* buffered: leaves with the turn */
        if (err < 0) return err;
    }
    return (int)n; /* 0: the client has ended; serve closes the stream */
}

static int serve(void *where) {
    coil_listener *l;
    coil_addr addr;
    char text[COIL_ADDR_TEXT_MAX];
    int err = coil_listen(&l, where, NULL);
    if (err < 0) return err;
    coil_listener_addr(l, &addr);
    if (coil_addr_format(&addr, text, sizeof text) > 0) printf("listening on %s\n", text);
    fflush(stdout);
    int left = coil_serve(l, echo, NULL, &(coil_serve_opts){.grace = coil_sec(2)});
    if (left > 0) printf("%d clients had to be cut off\n", left);
    coil_listener_close(l);
    return left < 0 ? left : 0;
}

static int stop_on_signal(void *group) {
    const int signals[] = {SIGINT, SIGTERM};
    int sig = coil_signal_wait(signals, 2);
    if (sig < 0) return sig;
    signal(SIGINT, SIG_DFL); /* the next one ends the process */
    signal(SIGTERM, SIG_DFL);
    puts("draining");
    fflush(stdout);
    coil_group_cancel(group);
    return 0;
}

static int server_until_signal(void *where) {
    COIL_GROUP(g);
    int err = coil_group_spawn(&g, stop_on_signal, &g);
    if (!err) err = coil_group_spawn(&g, serve, where); /* if it fails, the group ends with its error */
    if (err) return err;
    return coil_group_wait(&g);
}

int main(int argc, char **argv) {
    char dflt[] = "127.0.0.1:8888";
    int err = coil_run(server_until_signal, argc > 1 ? argv[1] : dflt);
    if (err < 0) fprintf(stderr, "echo_server: %s\n", coil_strerror(err));
    return err < 0;
}
