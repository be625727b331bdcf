/* Seeing what goes on. */
#ifndef COIL_DEBUG_H
#define COIL_DEBUG_H

#include "core.h"

#include <stdio.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Prints the call stack of the current task, a line for each function, "[0] function at file:line", from the
 * innermost on; then who waits for this task by a join, a group or a gather, and that task's call stack, and
 * so on. Files and lines come from libdw (elfutils), if coil was built with it, the machine has it and the
 * program has debugging information; else it is "function+0x12", good for addr2line. Of a deep stack the
 * innermost 64 calls are shown. It takes milliseconds, as files are read; with thousands of tasks in a row
 * more.
 * Memory: out is the caller's; it is written to from a stack of its own, and what it calls meanwhile must not
 *         be coil. Where there is no memory for such a stack, it is written to from the caller's, if that has
 *         24 KiB left, and addresses stand for names; else one line says so.
 * Mark: [now], but the thread waits for out, and for a dump by another thread. Thread: a task. */
COIL_API void coil_dump_callstack(FILE *out);

/* Prints all tasks of the worker, each below the one that spawned it or declared its group: its name and
 * function, its state and what it waits for, for how long and how much longer, cancel, shield and limit, how
 * much of its stack is in use and has ever been touched, where it was spawned, and its call stack as
 * coil_dump_callstack prints it. Nothing is changed by it. The option dump_signal of coil_run_with does the
 * same when a signal comes.
 * Memory: as coil_dump_callstack.
 * Mark: [now], as coil_dump_callstack. Thread: a task. */
COIL_API void coil_dump_tasks(FILE *out);

#ifdef __cplusplus
}
#endif

#endif
