/* A server that ends in order. SIGINT or SIGTERM: no new clients; those that are there have two seconds to
 * finish what they do; and when the last one has gone, what was counted is saved, in a time of its own.
 *
 * usage: graceful_shutdown ADDRESS FILE
 *
 * It echoes, and keeps the number of bytes that it has served in FILE. */
#include <coil/coil.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <unistd.h>

struct server {
    const char *where;
    int file; /* what is saved goes there */
    long served, saved;
};

static int echo(coil_stream *s, void *arg) {
    struct server *srv = arg;
    char buf[4096];
    ssize_t n;
    while ((n = coil_stream_read(s, buf, sizeof buf)) > 0) {
        int err = coil_stream_write(s, buf, (size_t)n);
        if (err < 0) return err;
        srv->served += n;
    }
    return (int)n;
}

static int save(struct server *srv) {
    char text[32];
    if (srv->saved == srv->served) return 0;
    long now = srv->served;
    int n = snprintf(text, sizeof text, "%ld\n", now);
    ssize_t written = coil_write(srv->file, text, (size_t)n, 0);
    if (written < 0) return (int)written;
    srv->saved = now;
    return 0;
}

/* Saves every second, and a last time when it is cancelled: the shield lets it, for a second at most. */
static int saves_every_second(void *arg) {
    coil_interval second = {.period = coil_sec(1)};
    int err = 0;
    while (err == 0 && coil_interval_tick(&second) == 0)
        err = save(arg);
    COIL_SHIELD(coil_sec(1)); /* the cancel may also have met it in the middle of saving */
    return err && err != -ECANCELED ? err : save(arg);
}

static int serves(void *arg) {
    struct server *srv = arg;
    char text[COIL_ADDR_TEXT_MAX] = "";
    coil_listener *l;
    coil_addr addr;
    int err = coil_listen(&l, srv->where, NULL);
    if (err < 0) return err;
    coil_listener_addr(l, &addr);
    coil_addr_format(&addr, text, sizeof text);
    printf("listening on %s\n", text);
    fflush(stdout);
    int cut = coil_serve(l, echo, srv, &(coil_serve_opts){.grace = coil_sec(2)});
    if (cut > 0) printf("%d clients were cut off\n", cut);
    coil_listener_close(l);
    return cut < 0 ? cut : 0;
}

static int stops_on_signal(void *group) {
    static const int signals[] = {SIGINT, SIGTERM};
    int sig = coil_signal_wait(signals, 2);
    if (sig < 0) return sig;
    signal(SIGINT, SIG_DFL); /* a second one ends the process at once */
    signal(SIGTERM, SIG_DFL);
    puts("draining");
    fflush(stdout);
    coil_group_cancel(group);
    return 0;
}

static int serve_until_signal(struct server *srv) {
    COIL_GROUP(g);
    int err = coil_group_spawn(&g, stops_on_signal, &g);
    if (!err) err = coil_group_spawn(&g, serves, srv);
    return err ? err : coil_group_wait(&g);
}

/* What must end last has the outer group: it is cancelled when nothing changes any more. */
static int server(void *arg) {
    COIL_GROUP(background);
    int err = coil_group_spawn(&background, saves_every_second, arg);
    if (!err) err = serve_until_signal(arg);
    coil_group_cancel(&background);
    int saved = coil_group_wait(&background);
    return err ? err : saved;
}

int main(int argc, char **argv) {
    if (argc != 3) {
        fprintf(stderr, "usage: graceful_shutdown ADDRESS FILE\n");
        return 2;
    }
    struct server srv = {.where = argv[1],
                         .file = open(argv[2], O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644)};
    if (srv.file < 0) {
        perror(argv[2]);
        return 1;
    }
    int err = coil_run(server, &srv);
    if (err < 0) fprintf(stderr, "graceful_shutdown: %s\n", coil_strerror(err));
    printf("served %ld bytes, saved %ld\n", srv.served, srv.saved);
    close(srv.file);
    return err < 0;
}
