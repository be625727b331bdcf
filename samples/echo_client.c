/* Sends "hello world!" to an echo server and prints what comes back.
 *
 * usage: echo_client [ADDRESS]        (127.0.0.1:8888) */
#include <coil/coil.h>
#include <stdio.h>
#include <string.h>

static int client(void *where) {
    static const char text[] = "hello world!";
    char reply[sizeof text];
    size_t got;
    coil_stream *s;
    COIL_WITHIN(coil_sec(5)); /* all that follows, connect to close */
    int err = coil_dial(&s, where, NULL);
    if (err < 0) return err;
    printf("Send: '%s'\n", text);
    coil_stream_write(s, text, strlen(text));                   /* an error here shows again in close */
    err = coil_stream_read_exact(s, reply, strlen(text), &got); /* a read that waits sends what was written */
    if (err == 0) printf("Received: '%.*s'\n", (int)got, reply);
    int closed = coil_stream_close(s);
    return err < 0 ? err : closed;
}

int main(int argc, char **argv) {
    char dflt[] = "127.0.0.1:8888";
    int err = coil_run(client, argc > 1 ? argv[1] : dflt);
    if (err < 0) fprintf(stderr, "echo_client: %s\n", coil_strerror(err));
    return err < 0;
}
