/* From addresses to names, files and lines. */
#include "check.h"
#include "fixtures/worker_fixture.h"
#include "lines.h"

#include "unwind.h"

#include <string.h>
#include <sys/mman.h>

enum { TEXT = 512 };

#ifdef COIL__HAVE_UNWIND
enum { HAVE_UNWIND = 1 };
#else
enum { HAVE_UNWIND = 0 };
#endif

/* What is printed for the n-th of the functions that pc is in; how many there are. */
static int printed(struct coil__symbols *s, const void *pc, int n, char text[TEXT]) {
    const struct coil__symbol *sym;
    int count = coil__symbols_find(s, pc, &sym);
    FILE *f = fmemopen(text, TEXT, "w");
    if (n < count) coil__symbol_print(f, &sym[n]);
    fclose(f);
    return count;
}

static void *here_pc[4];
static int here_line;

__attribute__((noinline)) static void a_static_function(void) {
    here_line = __LINE__ + 1;
    coil__unwind_here(here_pc, 4);
    __asm__ volatile("" : : : "memory");
}

__attribute__((noinline)) void a_global_function(void);
void a_global_function(void) {
    a_static_function();
    __asm__ volatile("" : : : "memory");
}

static void check_line(const char *text, const char *function, int line) {
    char want[TEXT];
    size_t n = strlen(text);
    if (lines_known()) {
        snprintf(want, sizeof want, "test_symbols.c:%d", line);
        cr_expect(n > strlen(want) && strcmp(text + n - strlen(want), want) == 0, "%s, not %s", text, want);
        snprintf(want, sizeof want, "%s at ", function);
    } else {
        snprintf(want, sizeof want, "%s+0x", function);
    }
    cr_expect_eq(strncmp(text, want, strlen(want)), 0, "%s, not %s", text, want);
}

Test(symbols, tell_function_and_line_of_a_call) {
    check_needs(HAVE_UNWIND, "an unwinder");
    char text[TEXT];
    a_global_function();
    struct coil__symbols *s = coil__symbols_open();
    cr_expect_eq(printed(s, here_pc[0], 0, text), 1);
    check_line(text, "a_static_function", here_line);
    printed(s, here_pc[1], 0, text);
    check_line(text, "a_global_function", here_line + 6);
    /* And again, now that they are known. */
    printed(s, here_pc[0], 0, text);
    check_line(text, "a_static_function", here_line);
    coil__symbols_close(s);
}

static inline __attribute__((always_inline)) void put_into_another(void) {
    here_line = __LINE__ + 1;
    coil__unwind_here(here_pc, 4);
}

__attribute__((noinline)) static void around(void) {
    put_into_another();
    __asm__ volatile("" : : : "memory");
}

Test(symbols, tell_functions_that_were_put_into_one_another) {
    check_needs(HAVE_UNWIND, "an unwinder");
    char text[TEXT];
    around();
    struct coil__symbols *s = coil__symbols_open();
    int n = printed(s, here_pc[0], 0, text);
    if (lines_known()) {
        cr_expect_eq(n, 2);
        check_line(text, "put_into_another", here_line);
        printed(s, here_pc[0], 1, text);
        check_line(text, "around", here_line + 4);
    } else {
        cr_expect_eq(n, 1);
        check_line(text, "around", 0);
    }
    coil__symbols_close(s);
}

/* The beginning of a function, as that of a task that has not run. */
static const void *begin_of(void (*fn)(void)) {
    return (const char *)(uintptr_t)fn + 1;
}

__attribute__((noinline)) void coil_of_a_program(void);
void coil_of_a_program(void) {
    __asm__ volatile("" : : : "memory");
}

static void check_not_ours(struct coil__symbols *s, void (*fn)(void), const char *name) {
    const struct coil__symbol *sym;
    coil__symbols_find(s, begin_of(fn), &sym);
    cr_expect_str_eq(sym->function, name);
    cr_expect_not(sym->ours, "%s is not coil's", name);
}

Test(symbols, know_coils_own_functions_from_others) {
    const struct coil__symbol *sym;
    struct coil__symbols *s = coil__symbols_open();
    coil__symbols_find(s, begin_of((void (*)(void))coil__symbols_open), &sym);
    cr_expect_str_eq(sym->function, "coil__symbols_open");
    cr_expect(sym->ours);
    check_not_ours(s, a_global_function, "a_global_function");
    check_not_ours(s, a_static_function, "a_static_function");
    /* In a file with the name of one of coil's. */
    check_not_ours(s, fixture_statics[0], "before");
    check_not_ours(s, fixture_between, "fixture_between");
    check_not_ours(s, fixture_statics[1], "after");
    /* The tables have nothing but the name. */
    if (lines_known()) check_not_ours(s, coil_of_a_program, "coil_of_a_program");
    coil__symbols_close(s);
}

Test(symbols, a_function_of_a_library_has_its_name) {
    const struct coil__symbol *sym;
    struct coil__symbols *s = coil__symbols_open();
    coil__symbols_find(s, begin_of((void (*)(void))fmemopen), &sym);
    /* It may have several, such as __fmemopen. */
    cr_expect(sym->function && strstr(sym->function, "fmemopen"));
    cr_expect_not(sym->ours);
    coil__symbols_close(s);
}

Test(symbols, an_address_of_nothing_is_printed_as_it_is) {
    char text[TEXT];
    struct coil__symbols *s = coil__symbols_open();
    void *nothing = mmap(NULL, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    char want[TEXT];
    snprintf(want, sizeof want, "0x%jx", (uintmax_t)(uintptr_t)nothing + 15);
    cr_expect_eq(printed(s, (char *)nothing + 16, 0, text), 1);
    cr_expect_str_eq(text, want);
    coil__symbols_close(s);
    munmap(nothing, 4096);
}

Test(symbols, without_memory_for_a_look_up_there_are_addresses) {
    char text[TEXT];
    cr_expect_eq(printed(NULL, (void *)(uintptr_t)0x1235, 0, text), 1);
    cr_expect_str_eq(text, "0x1234");
    coil__symbols_close(NULL);
}

Test(symbols, prints_what_it_knows) {
    char text[TEXT];
    struct coil__symbol known[] = {
        {.function = "f", .file = "a/b.c", .line = 7, .object = "prog", .offset = 0x20},
        {.function = "f", .object = "prog", .offset = 0x20},
        {.file = "a/b.c", .line = 7, .object = "prog", .offset = 0x20},
        {.offset = 0x20},
    };
    const char *want[] = {"f at a/b.c:7", "f+0x20", "prog+0x20", "0x20"};
    for (int i = 0; i < 4; i++) {
        FILE *f = fmemopen(text, sizeof text, "w");
        coil__symbol_print(f, &known[i]);
        fclose(f);
        cr_expect_str_eq(text, want[i]);
    }
}

static void look_up_many(void) {
    char text[TEXT];
    struct coil__symbols *s = coil__symbols_open();
    const char *at = begin_of(a_static_function);
    for (int i = -1000; i < 1000; i++)
        printed(s, at + i, 0, text);
    coil__symbols_close(s);
}

Test(symbols, give_back_descriptors_and_mappings) {
    look_up_many(); /* What the C library and libdw keep for good. */
    int fds = check_fd_count(), maps = check_map_count();
    for (int i = 0; i < 8; i++)
        look_up_many();
    cr_expect_eq(check_fd_count(), fds);
    /* Emulators map for themselves, too; a look-up maps several files. */
    if (!CHECK_SANITIZED) cr_expect_lt(check_map_count(), maps + 8);
}
