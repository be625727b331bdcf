/* How long a switch from one stack to another takes: two contexts that do nothing but switch to each other.
 */
#include "bench_micro.h"

#include "../runtime/switch.h"

enum { SWITCHES = 4000000, STACK_BYTES = 64 << 10 };

static struct coil__ctx main_ctx, other_ctx;

static void switch_back_for_ever(void *arg) {
    (void)arg;
    coil__ctx_entered(&other_ctx);
    for (;;)
        coil__ctx_switch(&other_ctx, &main_ctx);
}

static double ns_per_switch(void) {
    int64_t began_ns = bench_now();
    for (int i = 0; i < SWITCHES / 2; i++)
        coil__ctx_switch(&main_ctx, &other_ctx);
    return (double)(bench_now() - began_ns) / SWITCHES;
}

int main(int argc, char **argv) {
    struct micro m;
    micro_begin(&m, "switch", "Time of one switch between two contexts.", argc, argv);
    unsigned row = micro_row(&m, "ns", "one switch: two contexts, %d switches", (int)SWITCHES);
    char *stack = aligned_alloc(64, STACK_BYTES);
    if (!stack) micro_fail(&m, "a stack", ENOMEM);
    coil__ctx_adopt(&main_ctx);
    coil__ctx_make(&other_ctx, stack, STACK_BYTES, 0, switch_back_for_ever, NULL);
    ns_per_switch();
    for (unsigned i = 0; i < m.rounds; i++)
        micro_add(&m, row, ns_per_switch());
    coil__ctx_release(&other_ctx);
    free(stack);
    micro_end(&m);
    return 0;
}
