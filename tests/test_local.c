/* Task-local values. */
#include "check.h"

#include "coil/coil.h"

#include "task.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static char destroyed[64]; /* one letter for each call of a destructor */

static void note(void *value) {
    size_t n = strlen(destroyed);
    if (n + 1 == sizeof destroyed) return;
    destroyed[n] = *(const char *)value;
    destroyed[n + 1] = '\0';
}

static void note_and_free(void *value) {
    note(value);
    free(value);
}

static const coil_key first = {note}, second = {note}, third = {note}, plain = {NULL};
static const coil_key freed = {note_and_free};

/* Runs fn in a task of its own; what the destructors noted. */
static const char *noted_by(coil_fn *fn) {
    coil_task t;
    int result = -1;
    destroyed[0] = 0;
    cr_expect_eq(coil_spawn(&t, fn, NULL), 0);
    cr_expect_eq(coil_join(t, &result), 0);
    cr_expect_eq(result, 0);
    return destroyed;
}

static int has_none(void *arg) {
    (void)arg;
    cr_expect_null(coil_local(&first));
    cr_expect_eq(coil_local_set(&first, NULL), 0, "taking away what is not there");
    cr_expect_null(coil__here->current->locals);
    return 0;
}

static int sets_and_gets(void *arg) {
    (void)arg;
    has_none(NULL);
    cr_expect_eq(coil_local_set(&first, "a"), 0);
    cr_expect_eq(coil_local_set(&second, "b"), 0);
    cr_expect_str_eq(coil_local(&first), "a");
    cr_expect_str_eq(coil_local(&second), "b");
    cr_expect_null(coil_local(&third));
    cr_expect_str_eq(noted_by(has_none), "", "a child inherits nothing");
    cr_expect_eq(coil_local_set(&first, "c"), 0);
    cr_expect_str_eq(coil_local(&first), "c");
    cr_expect_str_eq(destroyed, "", "what was replaced is not destroyed");
    cr_expect_eq(coil_local_set(&first, NULL), 0);
    cr_expect_null(coil_local(&first));
    cr_expect_str_eq(coil_local(&second), "b");
    cr_expect_eq(coil_local_set(&second, NULL), 0);
    cr_expect_eq(coil_local_set(&second, NULL), 0);
    cr_expect_null(coil_local(&second));
    cr_expect_str_eq(destroyed, "");
    return 0;
}

Test(local, a_value_is_set_found_replaced_and_taken_away) {
    cr_assert_eq(coil_run(sets_and_gets, NULL), 0);
}

static int sets_three(void *arg) {
    (void)arg;
    cr_expect_eq(coil_local_set(&first, "1"), 0);
    cr_expect_eq(coil_local_set(&second, "2"), 0);
    cr_expect_eq(coil_local_set(&plain, "x"), 0);
    cr_expect_eq(coil_local_set(&third, "3"), 0);
    cr_expect_eq(coil_local_set(&first, "4"), 0, "its place stays");
    return 0;
}

static int sets_then_removes(void *arg) {
    (void)arg;
    cr_expect_eq(coil_local_set(&first, "1"), 0);
    cr_expect_eq(coil_local_set(&second, "2"), 0);
    cr_expect_eq(coil_local_set(&first, NULL), 0);
    return 0;
}

static int sets_memory(void *arg) {
    (void)arg;
    char *text = strdup("m");
    if (text) cr_expect_eq(coil_local_set(&freed, text), 0);
    return text ? coil_yield() : -ENOMEM;
}

static int ends_with_values(void *arg) {
    (void)arg;
    cr_expect_str_eq(noted_by(sets_three), "324", "the one set first last");
    cr_expect_str_eq(noted_by(sets_then_removes), "2", "NULL is not destroyed");
    cr_expect_str_eq(noted_by(sets_memory), "m");
    return 0;
}

Test(local, what_is_left_at_the_tasks_end_is_destroyed_the_first_last) {
    cr_assert_eq(coil_run(ends_with_values, NULL), 0);
}

static int main_task(void *arg) {
    (void)arg;
    return sets_three(NULL);
}

Test(local, the_main_tasks_values_are_destroyed_too) {
    cr_assert_eq(coil_run(main_task, NULL), 0);
    cr_assert_str_eq(destroyed, "324");
}

/* ---- in a destructor ---- */

static coil_task ending;

static void looks_around(void *value) {
    coil_key *unused = value;
    (void)unused;
    cr_expect(coil_task_same(coil_self(), ending), "it runs in the task");
    cr_expect_str_eq(coil_local(&first), "1", "set earlier, so still there");
    note("l");
}

static const coil_key looking = {looks_around};

static int is_looked_around(void *arg) {
    (void)arg;
    ending = coil_self();
    cr_expect_eq(coil_local_set(&first, "1"), 0);
    cr_expect_eq(coil_local_set(&looking, "v"), 0);
    return 0;
}

static void sees_itself_gone(void *value);
static const coil_key gone = {sees_itself_gone};

static void sees_itself_gone(void *value) {
    cr_expect_null(coil_local(&gone));
    note(value);
}

static int is_gone(void *arg) {
    (void)arg;
    return coil_local_set(&gone, "g");
}

static void parks(void *value) {
    cr_expect_eq(coil_sleep(coil_us(10)), 0);
    cr_expect_eq(coil_yield(), 0);
    {
        COIL_WITHIN(coil_ns(0));
        cr_expect_eq(coil_yield(), -ETIME);
    }
    note(value);
}

static const coil_key parking = {parks};

static int is_parked(void *arg) {
    (void)arg;
    return coil_local_set(&parking, "p");
}

static void sets_another(void *value) {
    note(value);
    cr_expect_eq(coil_local_set(&first, "n"), 0);
}

static void removes_another(void *value) {
    note(value);
    cr_expect_eq(coil_local_set(&first, NULL), 0);
}

static const coil_key setting = {sets_another}, removing = {removes_another};

static int leads_to_another(void *arg) {
    (void)arg;
    return coil_local_set(&setting, "s");
}

static int removes_before_its_turn(void *arg) {
    (void)arg;
    cr_expect_eq(coil_local_set(&first, "1"), 0);
    return coil_local_set(&removing, "r");
}

static int removes_what_was_just_set(void *arg) {
    (void)arg;
    cr_expect_eq(coil_local_set(&removing, "r"), 0);
    return coil_local_set(&setting, "s");
}

static void again(void *value);
static const coil_key stubborn = {again};

static void again(void *value) {
    note(value);
    cr_expect_eq(coil_local_set(&stubborn, value), 0);
}

static int never_done(void *arg) {
    (void)arg;
    cr_expect_eq(coil_local_set(&second, "2"), 0);
    return coil_local_set(&stubborn, "s");
}

static int destructors_do_things(void *arg) {
    (void)arg;
    cr_expect_str_eq(noted_by(is_looked_around), "l1");
    cr_expect_str_eq(noted_by(is_gone), "g");
    cr_expect_str_eq(noted_by(is_parked), "p");
    cr_expect_str_eq(noted_by(leads_to_another), "sn", "what it sets is destroyed too");
    cr_expect_str_eq(noted_by(removes_before_its_turn), "r");
    cr_expect_str_eq(noted_by(removes_what_was_just_set), "sr");
    cr_expect_str_eq(noted_by(never_done), "s2sss", "four rounds");
    return 0;
}

Test(local, a_destructor_may_do_what_its_task_could) {
    cr_assert_eq(coil_run(destructors_do_things, NULL), 0);
}

static coil_group left_open;

static int returns_nothing(void *arg) {
    (void)arg;
    return 0;
}

static void leaves_a_group_open(void *value) {
    (void)value;
    coil_group_spawn(&left_open, returns_nothing, NULL);
}

static const coil_key careless = {leaves_a_group_open};

static int is_careless(void *arg) {
    (void)arg;
    coil_name("careless");
    return coil_local_set(&careless, "c");
}

static int leaves_a_group_itself(void *arg) {
    (void)arg;
    coil_name("forgetful");
    coil_group_spawn(&left_open, returns_nothing, NULL);
    return coil_local_set(&first, "1");
}

static int runs(void *fn) {
    coil_fn *const *f = fn;
    return coil_run(*f, NULL);
}

Test(local, a_group_left_open_is_found_before_and_after_the_destructors) {
    coil_fn *before = leaves_a_group_itself, *after = is_careless;
    cr_assert(check_aborts(runs, &before, "coil_group_close: forgetful has ended with a group open"));
    cr_assert(check_aborts(runs, &after, "coil_group_close: careless has ended with a group open"));
}

/* ---- many ---- */

enum { KEYS = 100 };

static coil_key many[KEYS];
static int count;

static void counts(void *value) {
    (void)value;
    count++;
}

static int uses_many(void *arg) {
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < KEYS; i++)
            cr_expect_eq(coil_local_set(&many[i], &many[(i + round) % KEYS]), 0);
        cr_expect_eq(coil_yield(), 0);
        for (int i = 0; i < KEYS; i++)
            cr_expect(coil_local(&many[i]) == &many[(i + round) % KEYS]);
    }
    for (int i = 0; i < KEYS; i += 2)
        cr_expect_eq(coil_local_set(&many[i], NULL), 0);
    (void)arg;
    return 0;
}

static int many_tasks(void *arg) {
    (void)arg;
    count = 0;
    for (int i = 0; i < KEYS; i++)
        many[i].destroy = counts;
    COIL_GROUP(g);
    for (int i = 0; i < 50; i++)
        cr_expect_eq(coil_group_spawn(&g, uses_many, NULL), 0);
    cr_expect_eq(coil_group_wait(&g), 0);
    cr_expect_eq(count, 50 * KEYS / 2);
    return 0;
}

static int holds_nothing(void *arg) {
    (void)arg;
    many_tasks(NULL);
    size_t heap = check_heap_bytes();
    for (int i = 0; i < 5; i++) {
        many_tasks(NULL);
        noted_by(never_done);
    }
    cr_expect_leq(check_heap_bytes(), heap);
    return 0;
}

Test(local, many_values_of_many_tasks_are_kept_apart_and_leave_nothing_behind) {
    cr_assert_eq(coil_run(holds_nothing, NULL), 0);
}

static int set_outside(void *arg) {
    (void)arg;
    return coil_local_set(&first, "1");
}

static int get_outside(void *arg) {
    (void)arg;
    return coil_local(&first) != NULL;
}

Test(local, a_call_outside_a_task_stops_with_its_name) {
    cr_assert(check_aborts(set_outside, NULL, "coil: coil_local_set: "));
    cr_assert(check_aborts(get_outside, NULL, "coil: coil_local: "));
}
