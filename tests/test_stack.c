/* The pool of stacks by itself: sizes, the cache and its cap, guards on both paths, the overflow report, and
 * what happens to faults that are somebody else's. */
#include "check.h"

#include "stack.h"
#include "switch.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

enum { MANY = 100000, GUARDED_BYTES = 64 << 10 };

static struct coil__stack_pool pool;

static void pool_open(struct coil__stack_opts o) {
    cr_assert_eq(coil__stack_pool_init(&pool, &o), 0);
}

static struct coil__stack *get(size_t size) {
    struct coil__stack *s = NULL;
    cr_assert_eq(coil__stack_get(&pool, size, &s), 0);
    return s;
}

static size_t guards_max(void) {
    FILE *f = fopen("/proc/sys/vm/max_map_count", "re");
    unsigned long n = 0;
    cr_assert(f && fscanf(f, "%lu", &n) == 1);
    fclose(f);
    return n / 2 / 2; /* Half of the mappings, two for each guard. */
}

/* malloc may have taken a mapping meanwhile, and sanitizers take many. */
static void expect_maps(int count_max) {
    int count = check_map_count();
    if (!CHECK_SANITIZED) cr_assert_leq(count, count_max + 2, "%d mappings, expected %d", count, count_max);
}

/* ---- sizes -------------------------------------------------------------------------------------------- */

Test(stack, refuses_sizes_out_of_range) {
    static const size_t bad[] = {1, (16 << 10) - 1, (64 << 20) + 1, SIZE_MAX / 2, SIZE_MAX};
    pool_open((struct coil__stack_opts){0});
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        struct coil__stack *s = NULL;
        cr_assert_eq(coil__stack_get(&pool, bad[i], &s), -EINVAL, "size %zu", bad[i]);
        cr_assert_null(s);
        struct coil__stack_pool other;
        cr_assert_eq(coil__stack_pool_init(&other, &(struct coil__stack_opts){.default_size = bad[i]}),
                     -EINVAL);
    }
    coil__stack_pool_destroy(&pool);
}

Test(stack, gives_at_least_the_size_asked_for_usable_to_both_ends) {
    static const size_t sizes[] = {0,        16 << 10, (16 << 10) + 1, 40000,
                                   64 << 10, 1 << 20,  (1 << 20) + 1,  64 << 20};
    pool_open((struct coil__stack_opts){.default_size = 100000, .cache_max = 4});
    for (size_t i = 0; i < ARRAY_SIZE(sizes); i++) {
        struct coil__stack *s = get(sizes[i]);
        size_t asked = sizes[i] ? sizes[i] : 100000;
        cr_assert_geq(s->size, asked * COIL__STACK_SCALE);
        cr_assert_lt(s->size, MAX(2 * asked * COIL__STACK_SCALE, 2 * (size_t)sysconf(_SC_PAGESIZE)));
        cr_assert_eq((uintptr_t)s->lo % (size_t)sysconf(_SC_PAGESIZE), 0);
        cr_assert_null(s->label);
        s->lo[0] = s->lo[s->size - 1] = 1;
        coil__stack_put(&pool, s);
    }
    coil__stack_pool_destroy(&pool);
}

Test(stack, never_gives_two_users_the_same_bytes) {
    enum { N = 300 };
    struct coil__stack *held[N];
    pool_open((struct coil__stack_opts){.cache_max = 10});
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < N; i++) {
            held[i] = get(i % 3 ? 0 : 16 << 10);
            memcpy(held[i]->lo, &i, sizeof(i));
            memcpy(held[i]->lo + held[i]->size - sizeof(i), &i, sizeof(i));
        }
        for (int i = 0; i < N; i++) {
            cr_assert_eq(memcmp(held[i]->lo, &i, sizeof(i)), 0);
            cr_assert_eq(memcmp(held[i]->lo + held[i]->size - sizeof(i), &i, sizeof(i)), 0);
            coil__stack_put(&pool, held[i]);
        }
    }
    coil__stack_pool_destroy(&pool);
}

/* ---- the cache ---------------------------------------------------------------------------------------- */

Test(stack, gives_the_warmest_stack_of_the_size_first) {
    pool_open((struct coil__stack_opts){.cache_max = 8});
    struct coil__stack *a = get(0), *b = get(0), *big = get(1 << 20);
    coil__stack_put(&pool, a);
    coil__stack_put(&pool, b);
    coil__stack_put(&pool, big);
    cr_assert_eq(get(0), b);
    cr_assert_eq(get(0), a);
    cr_assert_eq(get(1 << 20), big);
    coil__stack_put(&pool, a);
    coil__stack_put(&pool, b);
    coil__stack_put(&pool, big);
    coil__stack_pool_destroy(&pool);
}

/* Whether the kernel holds a page there. */
static bool resident(char *page) {
    unsigned char in_core = 0;
    cr_assert_eq(mincore(page, 1, &in_core), 0);
    return in_core & 1;
}

Test(stack, keeps_no_more_pages_than_the_cap_and_lets_the_coldest_go) {
    enum { N = 640, CAP = 64 };
    static struct coil__stack *held[N];
    char *top[N];
    pool_open((struct coil__stack_opts){.cache_max = CAP});
    for (int i = 0; i < N; i++) {
        held[i] = get(0);
        top[i] = held[i]->lo + held[i]->size - (size_t)sysconf(_SC_PAGESIZE);
        *top[i] = 1;
        cr_assert(resident(top[i]));
    }
    for (int i = 0; i < N; i++) {
        coil__stack_put(&pool, held[i]);
        cr_assert_leq(pool.warm_count, CAP);
        cr_assert(resident(top[i]), "the last one put stays warm");
    }
    int warm = 0;
    for (struct coil__stack *s = held[N - 1]; s; s = s->next)
        warm++;
    cr_assert_eq(warm, (int)pool.warm_count);
    cr_assert_geq(warm, CAP / 2);
    /* What is cold and was not unmapped holds nothing. Warm ones are the last that were put. */
    for (int i = N - warm; i < N; i++)
        cr_assert(resident(top[i]), "stack %d of %d", i, N);
    cr_assert_not_null(pool.spare);
    cr_assert_not(resident(top[0]), "the spare slab holds no page");
    coil__stack_pool_destroy(&pool);
}

Test(stack, shares_the_cap_between_sizes) {
    enum { N = 40 };
    struct coil__stack *small[N], *large[N];
    pool_open((struct coil__stack_opts){.cache_max = N});
    for (int i = 0; i < N; i++) {
        small[i] = get(16 << 10);
        large[i] = get(128 << 10);
    }
    for (int i = 0; i < N; i++)
        coil__stack_put(&pool, small[i]);
    for (int i = 0; i < N; i++)
        coil__stack_put(&pool, large[i]);
    cr_assert_leq(pool.warm_count, N);
    cr_assert_eq(get(128 << 10), large[N - 1], "a full cache of one size doesn't keep another out");
    coil__stack_put(&pool, large[N - 1]);
    coil__stack_pool_destroy(&pool);
}

static void rise_and_fall(struct coil__stack **held, int n) {
    for (int i = 0; i < n; i++) {
        held[i] = get(0);
        held[i]->lo[held[i]->size - 1] = 1;
    }
    for (int i = 0; i < n; i++)
        coil__stack_put(&pool, held[i]);
}

Test(stack, unmaps_what_is_wholly_unused_and_a_second_round_adds_nothing) {
    enum { N = 5000 };
    struct coil__stack **held = calloc(N, sizeof(struct coil__stack *));
    int maps_before = check_map_count();
    pool_open((struct coil__stack_opts){.cache_max = 16});
    rise_and_fall(held, N);
    int maps_first = check_map_count();
    long rss_first_kb = check_rss_kb();
    /* The warm ones lie in two slabs at most, the third is the spare; a slab has 64 stacks and as many
     * guards. */
    expect_maps(maps_before + 3 * 128);
    rise_and_fall(held, N);
    expect_maps(maps_first);
    if (!CHECK_SANITIZED) cr_assert_leq(check_rss_kb(), rss_first_kb + 4096, "of %d pages", N);
    coil__stack_pool_destroy(&pool);
    expect_maps(maps_before);
    free(held);
}

Test(stack, keeps_nothing_warm_with_a_cap_of_zero) {
    pool_open((struct coil__stack_opts){.cache_max = 0});
    for (int i = 0; i < 100; i++) {
        struct coil__stack *s = get(0);
        s->lo[s->size - 1] = 1;
        coil__stack_put(&pool, s);
        cr_assert_eq(pool.warm_count, 0);
    }
    coil__stack_pool_destroy(&pool);
}

enum { NO_LIMIT = 99 };

static int get_with_no_memory(void *arg) {
    (void)arg;
    struct rlimit none = {1 << 20, 1 << 20};
    struct coil__stack *s = NULL;
    if (coil__stack_pool_init(&pool, &(struct coil__stack_opts){0}) != 0) return 1;
    setrlimit(RLIMIT_AS, &none);
    if (mmap(NULL, 1 << 20, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) != MAP_FAILED) return NO_LIMIT;
    for (int i = 0; i < 3; i++)
        if (coil__stack_get(&pool, 0, &s) != -ENOMEM || s) return 2;
    coil__stack_pool_destroy(&pool);
    return 0;
}

Test(stack, says_so_when_there_is_no_memory) {
    check_needs(!CHECK_SANITIZED, "an address space that can be limited");
    char err[256];
    int status;
    cr_assert(check_in_child(get_with_no_memory, NULL, &status, err, sizeof(err)));
    check_needs(WEXITSTATUS(status) != NO_LIMIT, "an address space that can be limited");
    cr_assert_eq(status, 0, "wait status %#x", (unsigned)status);
}

/* ---- guards ------------------------------------------------------------------------------------------- */

static sigjmp_buf after_fault;
static void *volatile fault_address;

static void on_foreign_fault(int sig, siginfo_t *info, void *context) {
    (void)sig;
    (void)context;
    fault_address = info->si_addr;
    siglongjmp(after_fault, 1);
}

static bool faults(volatile char *p) {
    if (sigsetjmp(after_fault, 1)) return fault_address == (void *)(uintptr_t)p;
    *p = 1;
    return false;
}

static void all_gaps_fault(bool use_guard_install) {
    enum { N = 200 };
    static struct coil__stack *held[N];
    struct sigaction h = {.sa_sigaction = on_foreign_fault, .sa_flags = SA_SIGINFO};
    sigaction(SIGSEGV, &h, NULL);
    pool_open((struct coil__stack_opts){.cache_max = 16, .use_guard_install = use_guard_install});
    for (int round = 0; round < 2; round++) {
        for (int i = 0; i < N; i++)
            held[i] = get(i % 2 ? 0 : 16 << 10);
        for (int i = 0; i < N; i++) {
            cr_assert(held[i]->guarded);
            cr_assert(faults(held[i]->lo - 1), "stack %d", i);
            cr_assert(faults(held[i]->lo - GUARDED_BYTES), "stack %d", i);
            held[i]->lo[0] = 1;
        }
        for (int i = 0; i < N; i++)
            coil__stack_put(&pool, held[i]);
    }
    cr_assert_eq(coil__stack_unguarded(&pool), 0);
    coil__stack_pool_destroy(&pool);
}

Test(stack, has_a_guard_of_64_kib_below_each_made_by_mprotect) {
    all_gaps_fault(false);
}

Test(stack, has_a_guard_of_64_kib_below_each_made_by_guard_install) {
    check_needs(coil__stack_probe_guard_install(), "MADV_GUARD_INSTALL");
    all_gaps_fault(true);
}

Test(stack, gives_100000_stacks_with_guard_install_and_hardly_a_mapping) {
    check_needs(coil__stack_probe_guard_install(), "MADV_GUARD_INSTALL");
    struct coil__stack **held = calloc(MANY, sizeof(struct coil__stack *));
    int maps_before = check_map_count();
    pool_open((struct coil__stack_opts){.cache_max = 1024, .use_guard_install = true, .guards_only = true});
    for (int i = 0; i < MANY; i++)
        held[i] = get(0);
    cr_assert_eq(coil__stack_unguarded(&pool), 0);
    expect_maps(maps_before + 200);
    for (int i = 0; i < MANY; i++)
        coil__stack_put(&pool, held[i]);
    coil__stack_pool_destroy(&pool);
    expect_maps(maps_before);
    free(held);
}

/* The edges of every stack and of every gap lie between pages: the kernel changes whole ones. */
static void fits_pages_of(size_t page_size, bool use_guard_install) {
    static const size_t sizes[] = {16 << 10, 0, 40000, 128 << 10};
    struct coil__stack *held[4 * ARRAY_SIZE(sizes)];
    struct sigaction h = {.sa_sigaction = on_foreign_fault, .sa_flags = SA_SIGINFO};
    sigaction(SIGSEGV, &h, NULL);
    pool_open((struct coil__stack_opts){
        .page_size = page_size, .cache_max = 2, .guards_only = true, .use_guard_install = use_guard_install});
    for (size_t i = 0; i < ARRAY_SIZE(held); i++) {
        held[i] = get(sizes[i % ARRAY_SIZE(sizes)]);
        cr_assert_geq(held[i]->size, sizes[i % ARRAY_SIZE(sizes)]);
        cr_assert_eq(held[i]->size % page_size, 0, "%zu bytes", held[i]->size);
        if (i >= ARRAY_SIZE(sizes)) {
            uintptr_t apart = (uintptr_t)held[i]->lo - (uintptr_t)held[i - ARRAY_SIZE(sizes)]->lo;
            cr_assert_eq(apart % page_size, 0, "pages of %zu", page_size);
        }
        memset(held[i]->lo, 1, held[i]->size);
        cr_assert(faults(held[i]->lo - 1), "pages of %zu", page_size);
        cr_assert(faults(held[i]->lo - GUARDED_BYTES), "pages of %zu", page_size);
        cr_assert(faults(held[i]->lo - page_size), "pages of %zu", page_size);
    }
    for (size_t i = 0; i < ARRAY_SIZE(held); i++)
        coil__stack_put(&pool, held[i]);
    for (size_t i = 0; i < ARRAY_SIZE(held); i++) {
        held[i] = get(0);
        held[i]->lo[0] = held[i]->lo[held[i]->size - 1] = 1;
    }
    for (size_t i = 0; i < ARRAY_SIZE(held); i++)
        coil__stack_put(&pool, held[i]);
    coil__stack_pool_destroy(&pool);
}

Test(stack, fits_pages_of_16_and_of_64_kib) {
    bool install = coil__stack_probe_guard_install();
    for (size_t page_size = (size_t)sysconf(_SC_PAGESIZE); page_size <= 64 << 10; page_size *= 2) {
        fits_pages_of(page_size, false);
        if (install) fits_pages_of(page_size, true);
    }
}

static int get_100000_without_guard_install(void *arg) {
    const struct coil__stack_opts *o = arg;
    struct coil__stack **held = calloc(MANY, sizeof(struct coil__stack *));
    size_t guarded_max = guards_max(), guarded = 0;
    for (int round = 0; round < 2; round++) {
        if (coil__stack_pool_init(&pool, o) != 0) return 1;
        guarded = 0;
        for (int i = 0; i < MANY; i++) {
            if (coil__stack_get(&pool, 0, &held[i]) != 0) return 2;
            held[i]->lo[held[i]->size - 1] = 1;
            guarded += held[i]->guarded;
            if (!held[i]->guarded && !coil__stack_canary_ok(held[i])) return 3;
        }
        if (guarded != MIN(guarded_max, (size_t)MANY)) return 4;
        if (coil__stack_unguarded(&pool) != MANY - guarded) return 5;
        for (int i = 0; i < MANY; i++)
            coil__stack_put(&pool, held[i]);
        if (coil__stack_unguarded(&pool) > MANY - guarded) return 6;
        coil__stack_pool_destroy(&pool);
        if (coil__stack_unguarded(&pool) != 0) return 7;
    }
    free(held);
    return 0;
}

static int occurrences(const char *text, const char *what) {
    int n = 0;
    for (const char *p = text; (p = strstr(p, what)) != NULL; p++)
        n++;
    return n;
}

Test(stack, gives_100000_stacks_without_guard_install_and_says_once_that_some_have_no_guard) {
    check_needs(guards_max() < MANY, "a vm.max_map_count below 400,000");
    check_needs(!check_on_uml(), "a machine of its own, to map a stack per task");
    check_needs(sysconf(_SC_PHYS_PAGES) > 2L * MANY, "memory for a page of each of 100,000 stacks");
    char err[1024];
    int status;
    struct coil__stack_opts o = {.cache_max = 1024};
    cr_assert(check_in_child(get_100000_without_guard_install, &o, &status, err, sizeof(err)));
    cr_assert_eq(status, 0, "wait status %#x", (unsigned)status);
    cr_assert_eq(occurrences(err, "vm.max_map_count ("), 1, "stderr: %s", err);
    cr_assert_eq(occurrences(err, "\n"), 1, "stderr: %s", err);
    o.quiet = true;
    cr_assert(check_in_child(get_100000_without_guard_install, &o, &status, err, sizeof(err)));
    cr_assert_eq(status, 0, "wait status %#x", (unsigned)status);
    cr_assert_str_eq(err, "");
}

Test(stack, gives_guarded_stacks_or_none_where_only_guards_are_wanted) {
    size_t n = guards_max(), got = 0;
    check_needs(n < MANY, "a vm.max_map_count below 400,000");
    struct coil__stack **held = calloc(n + 1, sizeof(struct coil__stack *));
    struct coil__stack *s = NULL;
    pool_open((struct coil__stack_opts){.cache_max = 4, .guards_only = true});
    while (got <= n && coil__stack_get(&pool, 0, &held[got]) == 0)
        cr_assert(held[got++]->guarded);
    cr_assert_eq(got, n);
    for (int i = 0; i < 3; i++) {
        cr_assert_eq(coil__stack_get(&pool, 0, &s), -ENOMEM);
        cr_assert_eq(coil__stack_get(&pool, 1 << 20, &s), -ENOMEM);
    }
    cr_assert_null(s);

    /* The limit is the process's: another pool has none left either, until this one gives its own back. */
    struct coil__stack_pool other;
    cr_assert_eq(coil__stack_pool_init(&other, &(struct coil__stack_opts){.guards_only = true}), 0);
    cr_assert_eq(coil__stack_get(&other, 0, &s), -ENOMEM);
    while (got > 0)
        coil__stack_put(&pool, held[--got]);
    coil__stack_pool_destroy(&pool);
    cr_assert_eq(coil__stack_get(&other, 0, &s), 0);
    coil__stack_put(&other, s);
    coil__stack_pool_destroy(&other);
    free(held);
}

/* Runs fn in a child. What a user-mode emulator says of the child's end is not the child's. */
static int stderr_of_child(int (*fn)(void *arg), void *arg, char *err, size_t err_size) {
    int status;
    cr_assert(check_in_child(fn, arg, &status, err, err_size));
    char *emulator = strstr(err, "qemu: ");
    if (emulator) *emulator = '\0';
    return status;
}

/* ---- overflow ----------------------------------------------------------------------------------------- */

static struct coil__stack *find_unguarded(struct coil__stack_pool *p) {
    struct coil__stack *s;
    p->mappings_max = 0; /* As if all were used up. */
    if (coil__stack_get(p, 0, &s) != 0 || s->guarded) abort();
    return s;
}

Test(stack, finds_by_its_canary_that_an_unguarded_stack_has_overflowed) {
    pool_open((struct coil__stack_opts){.cache_max = 4, .quiet = true});
    struct coil__stack *s = find_unguarded(&pool);
    memset(s->lo, 0xff, s->size);
    cr_assert(coil__stack_canary_ok(s), "the last usable byte is no overflow");
    for (size_t below = 1; below <= COIL__STACK_CANARY_WORDS * sizeof(uint64_t); below++) {
        *(s->lo - below) = 1;
        cr_assert_not(coil__stack_canary_ok(s), "%zu bytes below", below);
        *(s->lo - below) = 0;
    }
    coil__stack_put(&pool, s);
    coil__stack_pool_destroy(&pool);
}

static void spawned(void) {
}

static struct coil__stack_label label = {"deep", spawned, 0};

static void expected_report(char *text, size_t n, const struct coil__stack_label *l, size_t size) {
    char fn[64] = "";
    if (l && l->fn) snprintf(fn, sizeof(fn), " (spawned with %#jx)", (uintmax_t)(uintptr_t)l->fn);
    snprintf(text, n,
             "coil: stack overflow in task '%s'%s, stack of %zu bytes; give it more with stack_size\n",
             l && l->name ? l->name : "?", fn, size);
}

static int overflow_found_by_canary(void *arg) {
    coil__stack_pool_init(&pool, &(struct coil__stack_opts){.quiet = true});
    struct coil__stack *s = find_unguarded(&pool);
    s->label = arg;
    coil__stack_overflowed(s);
}

Test(stack, stops_with_the_report_when_the_canary_is_gone) {
    char text[256];
    expected_report(text, sizeof(text), &label, (64 << 10) * COIL__STACK_SCALE);
    cr_assert(check_aborts(overflow_found_by_canary, &label, text));
    expected_report(text, sizeof(text), NULL, (64 << 10) * COIL__STACK_SCALE);
    cr_assert(check_aborts(overflow_found_by_canary, NULL, text));
    struct coil__stack_label bare = {NULL, NULL, 0};
    cr_assert(check_aborts(overflow_found_by_canary, &bare, text));
    char *name = malloc(5000);
    memset(name, 'x', 4999);
    name[4999] = '\0';
    struct coil__stack_label nameless = {"", NULL, 12};
    cr_assert(check_aborts(overflow_found_by_canary, &nameless, "overflow in task 12, stack of "));
    struct coil__stack_label lengthy = {name, spawned, 0};
    cr_assert(check_aborts(overflow_found_by_canary, &lengthy, "overflow in task 'xxxxxxx"));
    free(name);
}

static struct coil__ctx main_ctx, deep_ctx;

static volatile int depth_max = INT32_MAX; /* Volatile, so that no compiler sees how far it goes. */

static __attribute__((noinline)) int descend(int depth) {
    volatile char frame[512];
    frame[0] = 1;
    if (depth == depth_max) return 0;
    int below = descend(depth + 1);
    return below + frame[0];
}

static void deep_entry(void *arg) {
    coil__ctx_entered(&deep_ctx);
    *(int *)arg = descend(0);
    coil__ctx_leave(&deep_ctx, &main_ctx);
}

static int recurse_without_end(void *arg) {
    struct coil__stack *s, *others[10];
    int result;
    coil__stack_pool_init(&pool, arg);
    coil__stack_thread_begin(&pool);
    for (int i = 0; i < 10; i++)
        coil__stack_get(&pool, 0, &others[i]);
    coil__stack_get(&pool, 32 << 10, &s);
    s->label = &label;
    coil__ctx_adopt(&main_ctx);
    coil__ctx_make(&deep_ctx, s->lo, s->size, 0, deep_entry, &result);
    coil__ctx_switch(&main_ctx, &deep_ctx);
    return 0;
}

static void overflow_is_reported(bool use_guard_install) {
    struct coil__stack_opts o = {.use_guard_install = use_guard_install, .quiet = true};
    char text[256], err[4096];
    size_t page = (size_t)sysconf(_SC_PAGESIZE), asked = (32 << 10) * COIL__STACK_SCALE;
    expected_report(text, sizeof(text), &label, (asked + page - 1) / page * page);
    int status = stderr_of_child(recurse_without_end, &o, err, sizeof(err));
    cr_assert_str_eq(err, text);
    cr_assert(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV, "wait status %#x", (unsigned)status);
}

Test(stack, reports_an_overflow_and_dies_of_the_fault_with_mprotect) {
    overflow_is_reported(false);
}

Test(stack, reports_an_overflow_and_dies_of_the_fault_with_guard_install) {
    check_needs(coil__stack_probe_guard_install(), "MADV_GUARD_INSTALL");
    overflow_is_reported(true);
}

/* ---- faults of others --------------------------------------------------------------------------------- */

/* What a child does about SIGSEGV before coil comes, and how it provokes one. */
struct foreign {
    struct sigaction before;
    bool sent;  /* By kill, not by an instruction. */
    bool other; /* On a thread that has no pool. */
    int sig;
};

static char *no_access;

static void provoke(const struct foreign *f) {
    if (f->sent)
        kill(getpid(), f->sig);
    else
        *(volatile char *)no_access = 1;
}

static void *provoke_in_thread(void *arg) {
    provoke(arg);
    return NULL;
}

static int fault_under_coil(void *arg) {
    struct foreign *f = arg;
    pthread_t t;
    no_access = mmap(NULL, 1, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    sigaction(f->sig, &f->before, NULL);
    coil__stack_pool_init(&pool, &(struct coil__stack_opts){0});
    coil__stack_thread_begin(&pool);
    if (!f->other) {
        provoke(f);
    } else {
        if (pthread_create(&t, NULL, provoke_in_thread, f) != 0) return 99;
        pthread_join(t, NULL);
    }
    coil__stack_thread_end(&pool);
    return 0;
}

static int fault(struct foreign f, char *err, size_t err_size) {
    if (!f.sig) f.sig = SIGSEGV;
    return stderr_of_child(fault_under_coil, &f, err, err_size);
}

static void exit_with_info(int sig, siginfo_t *info, void *context) {
    bool good = sig == SIGSEGV && info->si_addr == no_access && context;
    _exit(good ? 42 : 43);
}

static void exit_plain(int sig) {
    sigset_t now;
    pthread_sigmask(SIG_BLOCK, NULL, &now);
    if (sigismember(&now, SIGUSR1) != 1) _exit(44);
    if (sigismember(&now, SIGUSR2) == 1 && !CHECK_TSAN)
        _exit(44); /* TSan blocks all signals in every handler. */
    if (sigismember(&now, sig) != 1) _exit(45);
    _exit(46);
}

static void exit_unblocked(int sig) {
    sigset_t now;
    pthread_sigmask(SIG_BLOCK, NULL, &now);
    _exit(sigismember(&now, sig) ? 44 : 47);
}

static void write_and_return(int sig) {
    (void)sig;
    ssize_t n = write(STDERR_FILENO, "once ", 5);
    (void)n;
}

Test(stack, passes_foreign_faults_on_to_the_handler_before) {
    char err[4096];
    struct foreign f = {.before = {.sa_sigaction = exit_with_info, .sa_flags = SA_SIGINFO}};
    cr_assert_eq(WEXITSTATUS(fault(f, err, sizeof(err))), 42);
    f.other = true;
    cr_assert_eq(WEXITSTATUS(fault(f, err, sizeof(err))), 42);
    f = (struct foreign){.before = {.sa_handler = exit_plain}};
    sigaddset(&f.before.sa_mask, SIGUSR1);
    cr_assert_eq(WEXITSTATUS(fault(f, err, sizeof(err))), 46);
    f.sent = true;
    cr_assert_eq(WEXITSTATUS(fault(f, err, sizeof(err))), 46);
    f.sig = SIGBUS;
    cr_assert_eq(WEXITSTATUS(fault(f, err, sizeof(err))), 46);
    f = (struct foreign){.before = {.sa_handler = exit_unblocked, .sa_flags = SA_NODEFER}};
    cr_assert_eq(WEXITSTATUS(fault(f, err, sizeof(err))), 47);
    cr_assert_str_eq(err, "");
}

Test(stack, lets_a_one_shot_handler_run_once) {
    char err[4096];
    struct foreign f = {.before = {.sa_handler = write_and_return, .sa_flags = SA_RESETHAND}};
    int status = fault(f, err, sizeof(err));
    cr_assert(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV, "wait status %#x", (unsigned)status);
    cr_assert_str_eq(err, "once ");
}

Test(stack, lets_a_foreign_fault_kill_as_it_would_have_and_says_nothing) {
    char err[4096];
    for (int i = 0; i < 6; i++) {
        struct foreign f = {.sent = i % 3 == 1, .other = i % 3 == 2};
        f.before.sa_handler = i < 3 ? SIG_DFL : SIG_IGN;
        int status = fault(f, err, sizeof(err));
        bool killed = WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV;
        bool survives = i >= 3 && f.sent;
        cr_assert_eq(killed, !survives, "case %d: wait status %#x", i, (unsigned)status);
        if (survives) cr_assert_eq(status, 0);
        cr_assert_str_eq(err, "");
    }
}

static void some_handler(int sig) {
    _exit(sig);
}

static void other_handler(int sig) {
    _exit(sig + 1);
}

static void *second_user(void *arg) {
    struct coil__stack_pool p;
    struct sigaction now;
    stack_t before, after;
    coil__stack_pool_init(&p, &(struct coil__stack_opts){0});
    sigaltstack(NULL, &before);
    if (coil__stack_thread_begin(&p) != 0) return "begin";
    coil__stack_thread_end(&p);
    sigaltstack(NULL, &after);
    coil__stack_pool_destroy(&p);
    if (before.ss_sp != after.ss_sp || before.ss_flags != after.ss_flags) return "signal stack";
    sigaction(SIGSEGV, NULL, &now);
    bool ours = now.sa_handler != some_handler;
    return ours == *(bool *)arg ? NULL : "handler";
}

Test(stack, leaves_handlers_and_signal_stack_as_they_were) {
    static char mine[64 << 10];
    stack_t alternate = {.ss_sp = mine, .ss_size = sizeof(mine)}, stack_now, stack_before;
    struct sigaction h = {.sa_handler = some_handler}, now;
    bool ours_stays = true;
    pthread_t t;
    void *wrong = NULL;
    sigaltstack(&alternate, &stack_before);
    sigaction(SIGSEGV, &h, NULL);
    sigaction(SIGBUS, &h, NULL);
    pool_open((struct coil__stack_opts){0});
    cr_assert_eq(coil__stack_thread_begin(&pool), 0);

    cr_assert_eq(pthread_create(&t, NULL, second_user, &ours_stays), 0);
    pthread_join(t, &wrong);
    cr_assert_null(wrong, "another thread leaves first: %s", wrong ? (char *)wrong : "");

    coil__stack_thread_end(&pool);
    sigaltstack(NULL, &stack_now);
    cr_assert_eq(stack_now.ss_sp, (void *)mine);
    cr_assert_eq(stack_now.ss_size, sizeof(mine));
    sigaction(SIGSEGV, NULL, &now);
    cr_assert_eq(now.sa_handler, some_handler);
    sigaction(SIGBUS, NULL, &now);
    cr_assert_eq(now.sa_handler, some_handler);

    int maps_before = check_map_count();
    for (int i = 0; i < 10; i++) {
        cr_assert_eq(coil__stack_thread_begin(&pool), 0);
        coil__stack_thread_end(&pool);
    }
    expect_maps(maps_before);

    /* Whoever put a handler over ours keeps it. */
    cr_assert_eq(coil__stack_thread_begin(&pool), 0);
    h.sa_handler = other_handler;
    sigaction(SIGSEGV, &h, NULL);
    coil__stack_thread_end(&pool);
    sigaction(SIGSEGV, NULL, &now);
    cr_assert_eq(now.sa_handler, other_handler);
    coil__stack_pool_destroy(&pool);
    sigaltstack(&stack_before, NULL);
}

static int put_back_less(void *arg) {
    (void)arg;
    struct coil__stack *s;
    coil__stack_pool_init(&pool, &(struct coil__stack_opts){0});
    coil__stack_get(&pool, 0, &s);
    coil__stack_pool_destroy(&pool);
    return 0;
}

Test(stack, stops_when_the_pool_goes_before_its_stacks) {
    cr_assert(check_aborts(put_back_less, NULL, "internal check failed"));
}
