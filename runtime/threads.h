/* The blocking pool: threads that run what would block a worker. One for the process. */
#ifndef COIL__THREADS_H
#define COIL__THREADS_H

#include "driver.h"

/* How many threads at most, how many jobs may wait in each lane, and how long a thread waits for work before
 * it ends; 0: as it is. Any thread. */
void coil__threads_limits(unsigned threads_max, unsigned queue_max, int64_t idle_ns);

/* 0: j->run, then j->ended will be called on a thread of the pool. -EAGAIN: the lane's queue is full.
 * -ENOMEM: no thread is there, and none can be started. Any thread. */
int coil__threads_hand_over(struct coil__job *j);
/* Takes a job out of the queue: true, and it will not be run. false: it has begun, or is over. Any thread. */
bool coil__threads_take_back(struct coil__job *j);

#endif
