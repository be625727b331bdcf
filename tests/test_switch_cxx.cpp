// C++ exceptions and the switch: thrown and caught within one context, also while others are active.
//
// What an exception being handled leaves behind (std::uncaught_exceptions, the object that a bare `throw;`
// means) is kept by the C++ runtime per thread, not per context. The switch doesn't know of it; the last test
// shows the consequence.
#include "check.h"

#include "switch.h"

#include <exception>
#include <stdexcept>
#include <string>
#include <sys/mman.h>

namespace {

constexpr size_t stack_bytes = (256 << 10) * COIL__STACK_SCALE;

struct peer {
    coil__ctx ctx;
    coil__ctx *back;
    void *stack;
    void (*body)(peer &);
    std::string log;
    int depth;
    bool done;
};

void peer_entry(void *arg) {
    peer &p = *static_cast<peer *>(arg);
    coil__ctx_entered(&p.ctx);
    p.body(p);
    p.done = true;
    coil__ctx_leave(&p.ctx, p.back);
}

void peer_init(peer &p, coil__ctx &back, void (*body)(peer &), int depth) {
    p.back = &back;
    p.body = body;
    p.depth = depth;
    p.done = false;
    p.stack = mmap(nullptr, stack_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    coil__ctx_make(&p.ctx, p.stack, stack_bytes, 0, peer_entry, &p);
}

void peer_free(peer &p) {
    coil__ctx_release(&p.ctx);
    munmap(p.stack, stack_bytes);
}

void yield(peer &p) {
    coil__ctx_switch(&p.ctx, p.back);
}

struct on_exit {
    peer &p;
    ~on_exit() {
        p.log += '~';
    }
};

void sink(peer &p, int depth) {
    on_exit mark{p};
    if (depth == 0) throw std::runtime_error("bottom");
    sink(p, depth - 1);
}

void throw_and_catch(peer &p) {
    for (int i = 0; i < 3; i++) {
        yield(p);
        try {
            sink(p, p.depth);
            p.log += '!';
        } catch (const std::runtime_error &e) {
            p.log += e.what();
        }
    }
}

// Frames with work to do at unwinding are on the stack while the other contexts throw.
void throw_after_yield(peer &p) {
    try {
        on_exit mark{p};
        yield(p);
        yield(p);
        throw p.depth;
    } catch (int n) {
        p.log += std::to_string(n);
    }
}

} // namespace

Test(switch_cxx, catches_an_exception_within_a_context) {
    coil__ctx self;
    peer p;
    coil__ctx_adopt(&self);
    peer_init(p, self, throw_and_catch, 3);
    while (!p.done)
        coil__ctx_switch(&self, &p.ctx);
    cr_assert_str_eq(p.log.c_str(), "~~~~bottom~~~~bottom~~~~bottom");
    peer_free(p);
    coil__ctx_release(&self);
}

Test(switch_cxx, keeps_exceptions_of_contexts_apart_while_they_take_turns) {
    coil__ctx self;
    peer peers[4];
    coil__ctx_adopt(&self);
    for (int i = 0; i < 4; i++)
        peer_init(peers[i], self, i % 2 ? throw_after_yield : throw_and_catch, i);
    for (bool busy = true; busy;) {
        busy = false;
        for (peer &p : peers) {
            if (p.done) continue;
            coil__ctx_switch(&self, &p.ctx);
            busy = true;
        }
    }
    cr_assert_str_eq(peers[0].log.c_str(), "~bottom~bottom~bottom");
    cr_assert_str_eq(peers[1].log.c_str(), "~1");
    cr_assert_str_eq(peers[2].log.c_str(), "~~~bottom~~~bottom~~~bottom");
    cr_assert_str_eq(peers[3].log.c_str(), "~3");
    for (peer &p : peers)
        peer_free(p);
    coil__ctx_release(&self);
}

namespace {

void unwind_into_terminate(peer &p) {
    (void)p;
    throw std::logic_error("nobody catches this");
}

int run_uncaught(void *) {
    std::set_terminate([] {
        fputs("terminate was called\n", stderr);
        abort();
    });
    coil__ctx self;
    peer p;
    coil__ctx_adopt(&self);
    peer_init(p, self, unwind_into_terminate, 0);
    try {
        coil__ctx_switch(&self, &p.ctx);
    } catch (...) {
        fputs("caught on another stack\n", stderr);
    }
    return 0;
}

} // namespace

Test(switch_cxx, terminates_when_an_exception_would_leave_its_context) {
    cr_assert(check_aborts(run_uncaught, nullptr, "terminate was called"));
}

namespace {

void yield_in_catch(peer &p) {
    try {
        throw p.depth;
    } catch (int n) {
        yield(p);
        p.log += std::to_string(n);
    }
}

} // namespace

Test(switch_cxx, finishes_catch_blocks_that_were_left_in_reverse_order) {
    coil__ctx self;
    peer a, b;
    coil__ctx_adopt(&self);
    peer_init(a, self, yield_in_catch, 1);
    peer_init(b, self, yield_in_catch, 2);
    coil__ctx_switch(&self, &a.ctx);
    coil__ctx_switch(&self, &b.ctx);
    cr_assert(std::current_exception() != nullptr, "handled exceptions belong to the thread");
    coil__ctx_switch(&self, &b.ctx);
    coil__ctx_switch(&self, &a.ctx);
    cr_assert_str_eq(a.log.c_str(), "1");
    cr_assert_str_eq(b.log.c_str(), "2");
    cr_assert(std::current_exception() == nullptr);
    peer_free(a);
    peer_free(b);
    coil__ctx_release(&self);
}
