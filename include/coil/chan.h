/* Channels: items pass from task to task, in order, straight from the sender's memory into the receiver's. */
#ifndef COIL_CHAN_H
#define COIL_CHAN_H

#include "core.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A channel for items of one size. Its life: 1. COIL_CHAN, COIL_STATIC_CHAN or coil_chan_open; 2. send and
 * recv, by any number of tasks; 3. close, when no more items will come; 4. destroy, which only a channel that
 * was opened needs. It stays where it is, and belongs to the worker whose tasks use it, until nobody waits
 * and nothing is in it, or until that run has ended; use by another one meanwhile stops with a message, as
 * does use of one that is not open. With a capacity of 0 it is unbuffered: a sender waits until its item was
 * received. Who waits is served in the order of coming. An item that was handed over is received and sent,
 * also where a cancel or a limit comes before the task runs; one whose sender was cancelled before is not
 * delivered. */
typedef struct coil_chan {
    void *buf_; /* all is coil's */
    size_t item_size_, capacity_;
    uint64_t opaque[8];
} coil_chan;

#define COIL_CHAN_BUF_(name) coil_chan_buf_##name
#define COIL_CHAN_OPEN_ 1
#define COIL_CHAN_INIT_(name, type, capacity)             \
    {                                                     \
        COIL_CHAN_BUF_(name), sizeof(type), (capacity), { \
            COIL_CHAN_OPEN_                               \
        }                                                 \
    }

/* Declares an open channel for items of that type, with its buffer, in this block or file; the capacity is a
 * constant. No memory is allocated, and none needs freeing. Two declarations: not after `if` or a label, and
 * not in a header.
 * Mark: [any]. Thread: any. */
#define COIL_CHAN(name, type, capacity)                     \
    type COIL_CHAN_BUF_(name)[(capacity) ? (capacity) : 1]; \
    coil_chan name = COIL_CHAN_INIT_(name, type, capacity)

/* The same with both parts static: in a file, seen there only; in a block, there for all calls.
 * Mark: [any]. Thread: any. */
#define COIL_STATIC_CHAN(name, type, capacity)                     \
    static type COIL_CHAN_BUF_(name)[(capacity) ? (capacity) : 1]; \
    static coil_chan name = COIL_CHAN_INIT_(name, type, capacity)

/* Opens a channel for items of item_size bytes, of which it holds up to `capacity`. An item_size of 0 makes a
 * channel of mere signals: `item` is then not looked at, and may be NULL.
 * Returns: 0.
 * Errors: -ENOMEM: no memory for the items; *c is then not open.
 * Units: item_size: bytes. capacity: items.
 * Memory: what *c held before is overwritten. The buffer is coil's until coil_chan_destroy.
 * Mark: [now]. Thread: a task. */
COIL_API int coil_chan_open(coil_chan *c, size_t item_size, size_t capacity);

/* Sends one item. Waits until a receiver has it, or, in a channel with a capacity, until there is room.
 * Returns: 0.
 * Errors: -EPIPE: the channel is closed, or was while this call waited. -ECANCELED, -ETIME: refused, or woken
 *         before it could be sent. After any error the item was not sent.
 * Memory: *item is borrowed until the call returns.
 * Mark: [parks]. Thread: a task. */
COIL_API COIL_WUR int coil_chan_send(coil_chan *c, const void *item);

/* Receives the next item into *item. Waits until there is one.
 * Returns: 1; 0: the channel is closed and empty, and *item is untouched.
 * Errors: -ECANCELED, -ETIME: refused, or woken before there was an item.
 * Memory: *item is borrowed until the call returns.
 * Mark: [parks]. Thread: a task. */
COIL_API COIL_WUR int coil_chan_recv(coil_chan *c, void *item);

/* Sends one item if that needs no waiting.
 * Returns: 0.
 * Errors: -EAGAIN: it does. -EPIPE: the channel is closed.
 * Memory: *item is borrowed until the call returns.
 * Mark: [now]. Thread: a task. */
COIL_API COIL_WUR int coil_chan_trysend(coil_chan *c, const void *item);

/* Receives the next item into *item if there is one.
 * Returns: 1; 0: the channel is closed and empty.
 * Errors: -EAGAIN: it is empty, and not closed.
 * Memory: *item is borrowed until the call returns.
 * Mark: [now]. Thread: a task. */
COIL_API COIL_WUR int coil_chan_tryrecv(coil_chan *c, void *item);

/* Closes the channel: no more sends; what is in it can still be received. Waiting senders get -EPIPE, their
 * items are not delivered; waiting receivers get 0. Harmless when repeated.
 * Mark: [now]. Thread: a task. */
COIL_API void coil_chan_close(coil_chan *c);

/* Ends the channel, closed or not; what is in it is dropped. A channel that still has waiters stops the
 * process with a message. Harmless on one that is not open, if it is all zero.
 * Memory: the buffer of coil_chan_open is freed. *c is all zero afterwards, and may be opened anew.
 * Mark: [now]. Thread: a task. */
COIL_API void coil_chan_destroy(coil_chan *c);

#ifdef __cplusplus
}
#endif

#endif
