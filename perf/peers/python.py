"""Python's asyncio. It has no unbuffered channel: items go through a queue for one."""

import asyncio
import platform
import time

YIELDS, SPAWNS, ITEMS, LOCKS, SLEEPS = 100_000, 20_000, 50_000, 100_000, 50_000  # fewer: it is slower


def figure(name, ns, count):
    print(f"{name}\t{ns / count:.3f}", flush=True)


async def yielder(times):
    for _ in range(times):
        await asyncio.sleep(0)


async def yields(tasks):
    all_tasks = [asyncio.create_task(yielder(YIELDS // tasks)) for _ in range(tasks)]
    began = time.process_time_ns()
    await asyncio.gather(*all_tasks)
    figure(f"yield_{tasks}", time.process_time_ns() - began, YIELDS)


async def nothing():
    pass


async def spawn_and_join():
    began = time.process_time_ns()
    for _ in range(SPAWNS):
        await asyncio.create_task(nothing())
    figure("spawn", time.process_time_ns() - began, SPAWNS)


async def sender(queue):
    for i in range(ITEMS):
        await queue.put(i)


async def hand_over():
    queue = asyncio.Queue(1)
    began = time.process_time_ns()
    task = asyncio.create_task(sender(queue))
    total = 0
    for _ in range(ITEMS):
        total += await queue.get()
    await task
    if total == ITEMS * (ITEMS - 1) // 2:
        figure("channel", time.process_time_ns() - began, ITEMS)


async def lock_and_unlock():
    lock = asyncio.Lock()
    began = time.process_time_ns()
    for _ in range(LOCKS):
        await lock.acquire()
        lock.release()
    figure("mutex", time.process_time_ns() - began, LOCKS)


class Sleeps:
    """A batch: the first is due `lead` seconds after it began to sleep, the others over `spread` seconds."""

    def __init__(self, lead, spread):
        self.lead, self.spread, self.begun, self.first, self.in_time = lead, spread, 0, 0.0, False

    async def sleeper(self):
        now = asyncio.get_running_loop().time()
        if self.begun == 0:
            self.first = now + self.lead
        share = self.begun * 48271 % SLEEPS
        self.begun += 1
        if self.begun == SLEEPS:
            self.in_time = now < self.first
        await asyncio.sleep(self.first + self.spread / SLEEPS * share - now)


async def sleeps(name, spread):
    lead = 1.0
    while True:
        s = Sleeps(lead, spread)
        before = time.process_time_ns()
        await asyncio.gather(*(s.sleeper() for _ in range(SLEEPS)))
        used = time.process_time_ns() - before
        if s.in_time:  # else the last came to its sleep when the first was due already
            return figure(name, used, SLEEPS)
        lead *= 2


async def main():
    print(f"version\t{platform.python_version()}", flush=True)
    await yields(2)
    await yields(1000)
    await spawn_and_join()
    await hand_over()
    await lock_and_unlock()
    await sleeps("together", 0)
    await sleeps("spread", 1)


asyncio.run(main())
