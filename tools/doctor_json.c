/* The answer for a script: one JSON object (RFC 8259). Keys are only ever added. null: unknown, or none.
 *
 *   coil            version of coil
 *   runs            "io_uring", "epoll" or "no"
 *   exit_status     0, 3 or 1: that of the program
 *   verdict         one line for people
 *   machine         kernel, architecture, page_size (bytes), cpus
 *   limits          nofile and memlock (bytes): {soft, hard}, each a number or "unlimited";
 *                   max_map_count, somaxconn, io_uring_disabled, io_uring_group,
 *                   seccomp (0: none, 1: strict, 2: a filter)
 *   io_uring        usable; where it isn't, code (COIL_ESTART_*, else 0) and reason;
 *                   calls: what each of its three system calls answers ("allowed", "EPERM", "EACCES",
 *                   "ENOSYS"); sq_entries, cq_entries: of the ring that there was memory for
 *   epoll           usable, code, reason
 *   environment     COIL_DRIVER, COIL_CAPS; bytes that are not ASCII are shown as U+FFFD
 *   capabilities    by name: found (the kernel has it, as far as a ring could be asked),
 *                   forced_off (by COIL_CAPS), used (by a run), state (see doctor_cap_state),
 *                   effect (one line)
 *   paths           wait, accept, receive, send, wake, files, stacks: how a run does it; null: it can't
 *   guarded_stacks  how many stacks can have a guard page; null: limited by memory alone, or unknown
 *   advice          list of {change, why}: what to change for more */
#include "doctor.h"

#include "coil/core.h"

#include <string.h>

/* Where the output stands. */
struct json {
    FILE *to;
    bool follows; /* something stands before it in the innermost object or list */
};

static void put_string(struct json *j, const char *s) {
    if (!s) {
        fputs("null", j->to);
        return;
    }
    fputc('"', j->to);
    for (; *s; s++) {
        unsigned char c = (unsigned char)*s;
        if (c == '"' || c == '\\') {
            fprintf(j->to, "\\%c", c);
        } else if (c < 0x20 || c >= 0x7f) {
            fprintf(j->to, "\\u%04x", c > 0x7f ? 0xfffdU : c);
        } else {
            fputc(c, j->to);
        }
    }
    fputc('"', j->to);
}

/* The place of the next value; key is NULL in a list. */
static void place(struct json *j, const char *key) {
    if (j->follows) fputc(',', j->to);
    fputc('\n', j->to);
    j->follows = true;
    if (!key) return;
    put_string(j, key);
    fputc(':', j->to);
}

static void begin(struct json *j, const char *key, char bracket) {
    place(j, key);
    fputc(bracket, j->to);
    j->follows = false;
}

static void end(struct json *j, char bracket) {
    fputc(bracket, j->to);
    j->follows = true;
}

static void string(struct json *j, const char *key, const char *s) {
    place(j, key);
    put_string(j, s);
}

static void boolean(struct json *j, const char *key, bool b) {
    place(j, key);
    fputs(b ? "true" : "false", j->to);
}

static void number(struct json *j, const char *key, long long n) {
    place(j, key);
    fprintf(j->to, "%lld", n);
}

static void known(struct json *j, const char *key, struct known k) {
    if (k.yes) {
        number(j, key, k.value);
    } else {
        string(j, key, NULL);
    }
}

static void bound(struct json *j, const char *key, rlim_t n) {
    place(j, key);
    if (n == RLIM_INFINITY) {
        put_string(j, "unlimited");
    } else {
        fprintf(j->to, "%llu", (unsigned long long)n);
    }
}

static void limit(struct json *j, const char *key, const struct rlimit *l) {
    begin(j, key, '{');
    bound(j, "soft", l->rlim_cur);
    bound(j, "hard", l->rlim_max);
    end(j, '}');
}

static void tell_machine(const struct doctor *d, struct json *j) {
    begin(j, "machine", '{');
    string(j, "kernel", d->kernel.release);
    string(j, "architecture", d->kernel.machine);
    number(j, "page_size", d->page_size);
    number(j, "cpus", d->cpus);
    end(j, '}');
    begin(j, "limits", '{');
    limit(j, "nofile", &d->descriptors);
    limit(j, "memlock", &d->locked_memory);
    known(j, "max_map_count", d->max_map_count);
    known(j, "somaxconn", d->somaxconn);
    known(j, "io_uring_disabled", d->uring_disabled);
    known(j, "io_uring_group", d->uring_group);
    known(j, "seccomp", d->seccomp);
    end(j, '}');
}

static void tell_attempt(const struct attempt *a, struct json *j) {
    boolean(j, "usable", a->code == 0);
    number(j, "code", a->code);
    string(j, "reason", a->code ? a->why_not : NULL);
}

static void tell_drivers(const struct doctor *d, struct json *j) {
    begin(j, "io_uring", '{');
    tell_attempt(&d->ring, j);
    begin(j, "calls", '{');
    for (unsigned i = 0; i < ARRAY_SIZE(d->answers); i++) {
        const struct answer *a = &d->answers[i];
        string(j, a->call, a->error ? doctor_errno_name(a->error) : "allowed");
    }
    end(j, '}');
    known(j, "sq_entries", d->sq_entries);
    known(j, "cq_entries", d->cq_entries);
    end(j, '}');
    begin(j, "epoll", '{');
    tell_attempt(&d->epoll, j);
    end(j, '}');
    begin(j, "environment", '{');
    string(j, "COIL_DRIVER", d->driver_variable);
    string(j, "COIL_CAPS", d->caps_variable);
    end(j, '}');
}

static void tell_capabilities(const struct doctor *d, struct json *j) {
    begin(j, "capabilities", '{');
    for (unsigned i = 0; i < COIL__CAP_COUNT; i++) {
        const struct coil__cap_info *c = &coil__cap_table[i];
        begin(j, c->name, '{');
        boolean(j, "found", doctor_has(d->found, i));
        boolean(j, "forced_off", doctor_has(d->forced_off, i));
        boolean(j, "used", doctor_has(d->used, i));
        string(j, "state", doctor_cap_state(d, i));
        string(j, "effect", doctor_has(d->used, i) ? c->use : c->without);
        end(j, '}');
    }
    end(j, '}');
}

static void tell_advice(const struct doctor *d, struct json *j) {
    begin(j, "advice", '[');
    for (unsigned i = 0; i < d->advice_count; i++) {
        begin(j, NULL, '{');
        string(j, "change", d->advice[i].change);
        string(j, "why", d->advice[i].why);
        end(j, '}');
    }
    end(j, ']');
}

void doctor_tell_json(const struct doctor *d, FILE *to) {
    struct json j = {.to = to};
    fputc('{', to);
    string(&j, "coil", coil_version());
    string(&j, "runs", d->exit_status == CANNOT ? "no" : d->exit_status == CAN_EPOLL ? "epoll" : "io_uring");
    number(&j, "exit_status", d->exit_status);
    string(&j, "verdict", d->verdict);
    tell_machine(d, &j);
    tell_drivers(d, &j);
    tell_capabilities(d, &j);
    begin(&j, "paths", '{');
    for (unsigned i = 0; i < PATHS; i++)
        string(&j, d->paths[i].what, d->paths[i].how);
    end(&j, '}');
    known(&j, "guarded_stacks", d->guarded_stacks);
    tell_advice(d, &j);
    fputs("\n}\n", to);
}
