// C++ exceptions in tasks: each task's are its own, also where it parks inside a catch block.
#include "check.h"

#include <coil/coil.h>

#include <exception>
#include <stdexcept>
#include <string>

namespace {

int throws_and_catches(void *arg) {
    int depth = *static_cast<int *>(arg);
    for (int i = 0; i < 100; i++) {
        try {
            if (coil_yield() < 0) return -1;
            throw std::runtime_error("task " + std::to_string(depth));
        } catch (const std::exception &e) {
            if (e.what() != "task " + std::to_string(depth)) return -1;
        }
    }
    return depth;
}

// Parks inside the catch block, then throws on what it has caught: the C++ runtime must still know this
// task's exception, although other tasks have caught and finished theirs meanwhile, in any order.
int parks_while_it_handles(void *arg) {
    int turns = *static_cast<int *>(arg);
    try {
        try {
            throw turns;
        } catch (int) {
            for (int i = 0; i < turns; i++)
                coil_yield();
            if (!std::current_exception()) return -1;
            throw;
        }
    } catch (int caught) {
        return caught;
    }
    return -2;
}

// Unwinds through a frame whose destructor parks: then an exception is on its way that nobody has caught yet.
struct parks_when_destroyed {
    ~parks_when_destroyed() {
        int before = std::uncaught_exceptions();
        coil_yield();
        coil_yield();
        if (std::uncaught_exceptions() != before) wrong = true;
    }
    static bool wrong;
};
bool parks_when_destroyed::wrong;

int parks_while_it_unwinds(void *arg) {
    try {
        parks_when_destroyed guard;
        throw *static_cast<int *>(arg);
    } catch (int caught) {
        return std::uncaught_exceptions() == 0 ? caught : -1;
    }
}

enum { TASKS = 24 };

int side_by_side(void *arg) {
    coil_fn *fn = *static_cast<coil_fn **>(arg);
    static int numbers[TASKS];
    coil_task tasks[TASKS];
    for (int i = 0; i < TASKS; i++) {
        // Neither first in, first out nor the reverse: each sleeps for a number of turns of its own.
        numbers[i] = (i * 7) % TASKS + 1;
        if (coil_spawn(&tasks[i], fn, &numbers[i]) < 0) return -1;
    }
    for (int i = 0; i < TASKS; i++) {
        int result = 0;
        if (coil_join(tasks[i], &result) < 0) return -1;
        cr_expect_eq(result, numbers[i]);
    }
    return std::current_exception() == nullptr ? 0 : -1;
}

int run(coil_fn *fn) {
    return coil_run(side_by_side, &fn);
}

} // namespace

Test(task_cxx, an_exception_stays_inside_its_task) {
    cr_assert_eq(run(throws_and_catches), 0);
}

Test(task_cxx, a_task_may_park_inside_a_catch_block) {
    cr_assert_eq(run(parks_while_it_handles), 0);
}

Test(task_cxx, a_task_may_park_while_an_exception_is_on_its_way) {
    cr_assert_eq(run(parks_while_it_unwinds), 0);
    cr_assert(!parks_when_destroyed::wrong);
}
