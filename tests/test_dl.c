/* Functions of the program's libraries, found by name. */
#include "check.h"

#include "dl.h"

#include <dlfcn.h>
#include <stdint.h>
#include <stdlib.h>

static uintptr_t found(const char *name) {
    return (uintptr_t)coil__dl_find(name);
}

Test(dl, finds_what_libraries_export) {
    /* The sanitizers have functions of their own before those of the C library. */
    if (CHECK_SANITIZED) cr_skip("the sanitizer's come first");
    static const char *const names[] = {"malloc", "free", "getenv", "dlopen", "dlsym", "qsort", "strtoul"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        cr_expect_neq(found(names[i]), 0u, "%s", names[i]);
        cr_expect_eq(found(names[i]), (uintptr_t)dlsym(RTLD_DEFAULT, names[i]), "%s", names[i]);
    }
}

Test(dl, what_is_found_can_be_called) {
    int (*absolute)(int);
    *(void **)(void *)&absolute = coil__dl_find("abs");
    cr_assert(absolute != NULL);
    cr_expect_eq(absolute(-7), 7);
}

Test(dl, there_are_no_others) {
    cr_expect_eq(found("no_library_exports_this"), 0u);
    cr_expect_eq(found("Malloc"), 0u);
    cr_expect_eq(found("mallo"), 0u);
    cr_expect_eq(found(""), 0u);
    cr_expect_eq(found("stdout"), 0u, "that is no function");
}
