/* What a worker's tasks are at, for people to read: dumps with call stacks, and the short reports of a run.
 */
#ifndef COIL__DUMP_H
#define COIL__DUMP_H

#include "op.h"
#include "symbols.h"

/* All tasks of the worker, to stderr; for coil__signals_watch. In its loop. */
void coil__dump_worker(struct coil__worker *w);

/* Prints a call stack as coil_dump_callstack does: the first `count` of `total` frames are in pc. The frames
 * are numbered from *number on. keep_call: the call of coil that the task is in is shown, too. */
void coil__dump_frames(FILE *out, struct coil__symbols *symbols, void *const *pc, int count, int total,
                       bool keep_call, const char *indent, int *number);

/* The reports of a run, on stderr: a line for each task, then what they are at, if they are not too many.
 * again: after the cancel that follows a deadlock. */
void coil__report_exit(struct coil__worker *w, int64_t waited_ns);
void coil__report_deadlock(struct coil__worker *w, bool again);
/* Their parts: the lines, and those who wait for each other in circles. */
void coil__report_waits(struct coil__worker *w);
void coil__report_circles(struct coil__worker *w);

/* "1.234 s" */
void coil__print_ns(FILE *out, int64_t ns);
/* What a parked task waits for and for how long, as what follows "waits for ". */
void coil__print_wait(FILE *out, const struct coil__task *t, int64_t now_ns);

#endif
