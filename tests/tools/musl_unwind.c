/* What Debian's libgcc asks glibc for, to unwind by: the tables of the object around an address. musl has no
 * such call, so that programs which unwind link with this. */
#include <link.h>
#include <stdint.h>
#include <string.h>

struct dl_find_object {
    unsigned long long flags;
    void *map_start, *map_end;
    struct link_map *link_map;
    void *eh_frame;
    unsigned long long reserved[7];
};

struct search {
    uintptr_t address;
    struct dl_find_object *found;
};

int _dl_find_object(void *address, struct dl_find_object *found);

static int look_into(struct dl_phdr_info *info, size_t size, void *arg) {
    (void)size;
    struct search *s = arg;
    void *eh_frame = NULL;
    int inside = 0;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *h = &info->dlpi_phdr[i];
        uintptr_t lo = info->dlpi_addr + h->p_vaddr;
        if (h->p_type == PT_GNU_EH_FRAME) eh_frame = (void *)lo;
        if (h->p_type != PT_LOAD || s->address - lo >= h->p_memsz) continue;
        inside = 1;
        s->found->map_start = (void *)lo;
        s->found->map_end = (void *)(lo + h->p_memsz);
    }
    s->found->eh_frame = eh_frame;
    return inside && eh_frame;
}

int _dl_find_object(void *address, struct dl_find_object *found) {
    struct search s = {(uintptr_t)address, found};
    memset(found, 0, sizeof *found);
    return dl_iterate_phdr(look_into, &s) ? 0 : -1;
}
