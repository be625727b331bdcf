#include "unwind.h"

#include "base.h"

#ifdef COIL__HAVE_UNWIND
#include <unwind.h>

/* Where coil__ctx_start ends, or a little later: nothing else begins there that has a caller. */
enum { START_BYTES = 32 };

struct trace {
    void **pc;
    int max, count, skip;
};

/* Where a signal has come between, the address is that of the next instruction, not behind a call. */
static _Unwind_Reason_Code take_frame(struct _Unwind_Context *c, void *arg) {
    struct trace *t = arg;
    int before_insn = 0;
    uintptr_t ip = _Unwind_GetIPInfo(c, &before_insn);
    if (t->skip > 0) {
        t->skip--;
        return _URC_NO_REASON;
    }
    /* Some unwinders show the end as a frame at zero. */
    if (ip == 0 || ip - (uintptr_t)coil__ctx_start <= START_BYTES) return _URC_END_OF_STACK;
    /* NOLINTNEXTLINE(performance-no-int-to-ptr) */
    if (t->count < t->max) t->pc[t->count] = (void *)(ip + (before_insn ? 1 : 0));
    t->count++;
    return _URC_NO_REASON;
}

static __attribute__((noinline)) void take(void *arg) {
    _Unwind_Backtrace(take_frame, arg);
    /* The frame that `skip` counts on must still be there. */
    __asm__ volatile("" : : : "memory");
}

__attribute__((noinline)) int coil__unwind_here(void **pc, int max) {
    struct trace t = {.pc = pc, .max = max, .skip = 2};
    take(&t);
    return t.count;
}

int coil__unwind_ctx(const struct coil__ctx *c, void **pc, int max) {
    struct trace t = {.pc = pc, .max = max, .skip = 2};
    coil__ctx_visit(c->sp, take, &t);
    return t.count;
}

#else

int coil__unwind_here(void **pc, int max) {
    (void)pc;
    (void)max;
    return 0;
}

int coil__unwind_ctx(const struct coil__ctx *c, void **pc, int max) {
    (void)c;
    (void)pc;
    (void)max;
    return 0;
}

#endif
