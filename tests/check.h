/* One test file, two ways to run it: as a Criterion program, or, compiled with CHECK_PLAIN, with the plain
 * forking main() of check.c, which goes where Criterion cannot (user-mode emulation, user-mode-linux). Both
 * give every test a process of its own and a limit in time.
 *
 *     Test(stream, an_early_end_is_told, .timeout = 5) {
 *         check_needs(have_multishot, "multishot receive");
 *         cr_assert_eq(coil_run(body, NULL), 0, "the run failed");
 *     }
 *
 * What a test may use is what the plain main understands: Test with .init .fini .signal .exit_code .disabled
 * .description .timeout (in this order, if the file is C++), and the cr_ macros that are listed under
 * CHECK_PLAIN below. All of them take a printf format and its arguments at the end, or nothing.
 *
 * Inside a task use cr_expect, then return: a cr_assert that fails leaves by longjmp under Criterion, off the
 * task's stack and past everything that the run would still have to clean up. cr_assert is for the test's own
 * stack, and cr_skip too.
 *
 * The environment: COIL_TEST_ROUNDS scales check_rounds (a factor, 1 if unset), COIL_TEST_TIMEOUT is the
 * limit in seconds of tests that name none (60 if unset). Arguments of the plain program: --list, or parts of
 * names ("suite/name"). */
#ifndef CHECK_H
#define CHECK_H

#include <stdbool.h>
#include <stddef.h>

#if defined(__SANITIZE_ADDRESS__)
#define CHECK_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define CHECK_ASAN 1
#endif
#endif
#if defined(__SANITIZE_THREAD__)
#define CHECK_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define CHECK_TSAN 1
#endif
#endif
#ifndef CHECK_ASAN
#define CHECK_ASAN 0
#endif
#ifndef CHECK_TSAN
#define CHECK_TSAN 0
#endif
/* Memory is not given back, and everything is many times slower: compare no sizes and no times. */
#define CHECK_SANITIZED (CHECK_ASAN || CHECK_TSAN)

#ifdef __cplusplus
extern "C" {
#endif

/* Rounds of a race test: `rounds` times COIL_TEST_ROUNDS, at least 1. */
int check_rounds(int rounds);

/* The same for rounds in which two threads must take turns: the one processor of user-mode Linux goes from
 * one to the other with its clock, every 10 ms. */
int check_thread_rounds(int rounds);

/* What this process holds now. Each is at least 0; they abort where /proc cannot be read. */
int check_fd_count(void);
int check_map_count(void);
long check_rss_kb(void); /* means nothing when CHECK_SANITIZED */
/* Bytes from malloc that have not been freed; 0 where nobody counts them: when CHECK_SANITIZED, or without
 * glibc. */
size_t check_heap_bytes(void);

/* Whether this is user-mode Linux, a kernel that is a process of another: there each page of a process is a
 * mapping in a table of limited size, and no processor steps through single instructions. */
bool check_on_uml(void);

/* Runs fn in a forked child, which exits with what fn returns, and waits for it. The child's wait status goes
 * to *status, the beginning of what it wrote to stderr to `err`, always terminated. A child that is not done
 * after 30 s is killed (status: SIGKILL). Returns false if there was no child to be had. */
bool check_in_child(int (*fn)(void *arg), void *arg, int *status, char *err, size_t err_size);

/* The same for a call that must stop the process: true if fn ended by abort() and said `message` on stderr;
 * else false, and what happened instead is on stderr. */
bool check_aborts(int (*fn)(void *arg), void *arg, const char *message);

#ifdef __cplusplus
}
#endif

/* Skips the test, with the reason, unless `have` holds: a capability that was forced off, or is not in this
 * kernel. */
#define check_needs(have, what)                 \
    do {                                        \
        if (!(have)) cr_skip("needs %s", what); \
    } while (0)

#ifndef CHECK_PLAIN

#include <criterion/criterion.h>

#else

#ifdef __cplusplus
extern "C" {
#endif

struct check_test {
    const char *suite, *name, *file;
    int line;
    void (*body)(void);
    struct check_test *next;
    void (*init)(void);
    void (*fini)(void);
    int signal;
    int exit_code;
    bool disabled;
    const char *description;
    double timeout;
};

void check_register(struct check_test *t);
/* The format follows a leading blank, so that it is never empty. */
void check_failed(bool fatal, const char *file, int line, const char *what, const char *fmt, ...)
    __attribute__((format(printf, 5, 6)));
void check_skip(const char *fmt, ...) __attribute__((noreturn, format(printf, 1, 2)));
bool check_str_eq(const char *a, const char *b);
bool check_mem_eq(const void *a, const void *b, size_t n);

#ifdef __cplusplus
}
/* Fields that designated initializers leave out count as missing in C++. */
#pragma GCC diagnostic ignored "-Wmissing-field-initializers"
#endif

#define Test(Suite, Name, ...)                                                       \
    static void Suite##_##Name##_body(void);                                         \
    static struct check_test Suite##_##Name##_test = {.suite = #Suite,               \
                                                      .name = #Name,                 \
                                                      .file = __FILE__,              \
                                                      .line = __LINE__,              \
                                                      .body = Suite##_##Name##_body, \
                                                      .next = NULL,                  \
                                                      __VA_ARGS__};                  \
    __attribute__((constructor)) static void Suite##_##Name##_register(void) {       \
        check_register(&Suite##_##Name##_test);                                      \
    }                                                                                \
    static void Suite##_##Name##_body(void)

#define CHECK_THAT_(Fatal, Cond, What, ...)                                          \
    do {                                                                             \
        if (!(Cond)) check_failed(Fatal, __FILE__, __LINE__, What, " " __VA_ARGS__); \
    } while (0)

#define cr_assert(Cond, ...) CHECK_THAT_(true, Cond, #Cond, __VA_ARGS__)
#define cr_assert_not(Cond, ...) CHECK_THAT_(true, !(Cond), "!(" #Cond ")", __VA_ARGS__)
#define cr_assert_fail(...) CHECK_THAT_(true, false, "cr_assert_fail", __VA_ARGS__)
#define cr_assert_eq(A, B, ...) CHECK_THAT_(true, (A) == (B), #A " == " #B, __VA_ARGS__)
#define cr_assert_neq(A, B, ...) CHECK_THAT_(true, (A) != (B), #A " != " #B, __VA_ARGS__)
#define cr_assert_lt(A, B, ...) CHECK_THAT_(true, (A) < (B), #A " < " #B, __VA_ARGS__)
#define cr_assert_gt(A, B, ...) CHECK_THAT_(true, (A) > (B), #A " > " #B, __VA_ARGS__)
#define cr_assert_leq(A, B, ...) CHECK_THAT_(true, (A) <= (B), #A " <= " #B, __VA_ARGS__)
#define cr_assert_geq(A, B, ...) CHECK_THAT_(true, (A) >= (B), #A " >= " #B, __VA_ARGS__)
#define cr_assert_null(A, ...) CHECK_THAT_(true, (A) == NULL, #A " == NULL", __VA_ARGS__)
#define cr_assert_not_null(A, ...) CHECK_THAT_(true, (A) != NULL, #A " != NULL", __VA_ARGS__)
#define cr_assert_str_eq(A, B, ...) CHECK_THAT_(true, check_str_eq(A, B), #A " is " #B, __VA_ARGS__)
#define cr_assert_arr_eq(A, B, N, ...) CHECK_THAT_(true, check_mem_eq(A, B, N), #A " is " #B, __VA_ARGS__)

#define cr_expect(Cond, ...) CHECK_THAT_(false, Cond, #Cond, __VA_ARGS__)
#define cr_expect_not(Cond, ...) CHECK_THAT_(false, !(Cond), "!(" #Cond ")", __VA_ARGS__)
#define cr_expect_fail(...) CHECK_THAT_(false, false, "cr_expect_fail", __VA_ARGS__)
#define cr_expect_eq(A, B, ...) CHECK_THAT_(false, (A) == (B), #A " == " #B, __VA_ARGS__)
#define cr_expect_neq(A, B, ...) CHECK_THAT_(false, (A) != (B), #A " != " #B, __VA_ARGS__)
#define cr_expect_lt(A, B, ...) CHECK_THAT_(false, (A) < (B), #A " < " #B, __VA_ARGS__)
#define cr_expect_gt(A, B, ...) CHECK_THAT_(false, (A) > (B), #A " > " #B, __VA_ARGS__)
#define cr_expect_leq(A, B, ...) CHECK_THAT_(false, (A) <= (B), #A " <= " #B, __VA_ARGS__)
#define cr_expect_geq(A, B, ...) CHECK_THAT_(false, (A) >= (B), #A " >= " #B, __VA_ARGS__)
#define cr_expect_null(A, ...) CHECK_THAT_(false, (A) == NULL, #A " == NULL", __VA_ARGS__)
#define cr_expect_not_null(A, ...) CHECK_THAT_(false, (A) != NULL, #A " != NULL", __VA_ARGS__)
#define cr_expect_str_eq(A, B, ...) CHECK_THAT_(false, check_str_eq(A, B), #A " is " #B, __VA_ARGS__)
#define cr_expect_arr_eq(A, B, N, ...) CHECK_THAT_(false, check_mem_eq(A, B, N), #A " is " #B, __VA_ARGS__)

#define cr_skip(...) check_skip(" " __VA_ARGS__)

#endif
#endif
