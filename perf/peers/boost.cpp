// Boost.Fiber, with its round-robin scheduler and pooled stacks.
#include "peer.h"

#include <boost/fiber/all.hpp>
#include <boost/version.hpp>
#include <chrono>
#include <memory>
#include <vector>

namespace fibers = boost::fibers;

static fibers::pooled_fixedsize_stack stacks(PEER_STACK);

template <typename F> static fibers::fiber spawn(F f, fibers::launch when = fibers::launch::post) {
    return fibers::fiber(when, std::allocator_arg, stacks, f);
}

static void yields(int tasks) {
    peer_yields y;
    std::vector<fibers::fiber> all;
    peer_yields_begin(&y, tasks);
    for (int i = 0; i < tasks; i++) {
        all.push_back(spawn([&y] {
            do
                boost::this_fiber::yield();
            while (peer_yields_go_on(&y));
        }));
    }
    for (auto &f : all)
        f.join();
    peer_yields_end(&y, tasks);
}

// Running it at once is the cheaper way here.
static void spawn_and_join() {
    int64_t began_ns = peer_cpu();
    for (int i = 0; i < PEER_SPAWNS; i++)
        spawn([] {}, fibers::launch::dispatch).join();
    peer_figure("spawn", peer_cpu() - began_ns, PEER_SPAWNS);
}

static void hand_over() {
    int64_t sum = 0, item, began_ns = peer_cpu();
    fibers::unbuffered_channel<int64_t> c;
    fibers::fiber sender = spawn([&c] {
        for (int64_t i = 0; i < PEER_ITEMS; i++)
            c.push(i);
        c.close();
    });
    while (c.pop(item) == fibers::channel_op_status::success)
        sum += item;
    sender.join();
    if (sum == int64_t{PEER_ITEMS} * (PEER_ITEMS - 1) / 2)
        peer_figure("channel", peer_cpu() - began_ns, PEER_ITEMS);
}

static void lock_and_unlock() {
    fibers::mutex m;
    int64_t began_ns = peer_cpu();
    for (int i = 0; i < PEER_LOCKS; i++) {
        m.lock();
        m.unlock();
    }
    peer_figure("mutex", peer_cpu() - began_ns, PEER_LOCKS);
}

static void sleeps(const char *name, int64_t spread_ns) {
    using clock = std::chrono::steady_clock; // CLOCK_MONOTONIC
    peer_sleeps s = {};
    do {
        std::vector<fibers::fiber> all;
        all.reserve(PEER_SLEEPS);
        peer_sleeps_begin(&s, spread_ns);
        for (int i = 0; i < PEER_SLEEPS; i++) {
            all.push_back(spawn([&s] {
                boost::this_fiber::sleep_until(
                    clock::time_point(std::chrono::nanoseconds(peer_sleeps_due(&s))));
            }));
        }
        peer_sleeps_spawned(&s);
        for (auto &f : all)
            f.join();
    } while (!peer_sleeps_end(&s, name));
}

int main() {
    printf("version\t%d.%d.%d\n", BOOST_VERSION / 100000, BOOST_VERSION / 100 % 1000, BOOST_VERSION % 100);
    yields(2);
    yields(1000);
    spawn_and_join();
    hand_over();
    lock_and_unlock();
    sleeps(nullptr, 0);
    sleeps("together", 0);
    sleeps("spread", PEER_SECOND);
    return 0;
}
