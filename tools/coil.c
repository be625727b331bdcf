/* The program `coil`: what there is to ask of coil from a shell. */
#include "doctor.h"

#include "coil/core.h"

#include <stdio.h>
#include <string.h>

static const char usage[] = "usage: coil doctor [--json]\n"
                            "       coil --help | --version\n";

static const char help[] = "\n"
                           "coil doctor says what this machine gives a program that is built on coil: "
                           "whether one can run, by which\n"
                           "driver (io_uring, or epoll where that is forbidden), which of the kernel's "
                           "capabilities it will use, which\n"
                           "limits hold, and what to change for more. It needs no privileges, opens no "
                           "connections and changes nothing.\n"
                           "\n"
                           "  --json     one JSON object instead of the text\n"
                           "  --help     this text\n"
                           "  --version  coil's version\n"
                           "\n"
                           "Exit status: 0  coil can run here, by io_uring\n"
                           "             3  coil can run here, by epoll only\n"
                           "             1  coil cannot run here\n"
                           "             2  bad usage, or the answer could not be written\n"
                           "\n"
                           "The environment variables COIL_DRIVER and COIL_CAPS count as they would for the "
                           "program. Limits, seccomp\n"
                           "filters and capabilities are those of this process: run it where the program "
                           "will run, as the same user.\n";

enum { BAD_USAGE = 2 };

static int written(int status) {
    if (fflush(stdout) == 0 && !ferror(stdout)) return status;
    perror("coil");
    return BAD_USAGE;
}

static int say_version(void) {
    printf("coil %s\n", coil_version());
    return written(0);
}

static int say_help(void) {
    printf("%s%s", usage, help);
    return written(0);
}

static int misused(const char *arg) {
    if (arg) fprintf(stderr, "coil: unknown argument '%s'\n", arg);
    fputs(usage, stderr);
    return BAD_USAGE;
}

static int doctor(bool json) {
    static struct doctor d;
    doctor_look(&d);
    doctor_try(&d);
    doctor_judge(&d);
    if (json) {
        doctor_tell_json(&d, stdout);
    } else {
        doctor_tell(&d, stdout);
    }
    return written(d.exit_status);
}

int main(int argc, char **argv) {
    bool wants_doctor = argc > 1 && strcmp(argv[1], "doctor") == 0, json = false;
    for (int i = wants_doctor ? 2 : 1; i < argc; i++) {
        if (strcmp(argv[i], "--help") == 0) return say_help();
        if (strcmp(argv[i], "--version") == 0) return say_version();
        if (!wants_doctor || strcmp(argv[i], "--json") != 0) return misused(argv[i]);
        json = true;
    }
    return wants_doctor ? doctor(json) : misused(NULL);
}
