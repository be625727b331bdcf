#include "dl.h"

#include "base.h"

#include <link.h>
#include <string.h>

/* What is looked at is in memory: the file may have been replaced meanwhile. */
struct exports {
    const ElfW(Sym) * symbols;
    const char *names;
    const uint32_t *hash; /* DT_GNU_HASH */
};

struct search {
    const char *name;
    uint32_t hash;
    void *found;
};

static uint32_t hash_of(const char *name) {
    uint32_t h = 5381;
    for (const unsigned char *c = (const unsigned char *)name; *c; c++)
        h = h * 33 + *c;
    return h;
}

/* Some loaders have put the load address into the table, others have not.
 * NOLINTBEGIN(performance-no-int-to-ptr) */
static const void *address(uintptr_t bias, uintptr_t v) {
    return (const void *)(v < bias ? bias + v : v);
}

static bool exports_of(const struct dl_phdr_info *info, struct exports *e) {
    const ElfW(Dyn) *d = NULL;
    memset(e, 0, sizeof *e);
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *h = &info->dlpi_phdr[i];
        if (h->p_type == PT_DYNAMIC) d = (const ElfW(Dyn) *)(info->dlpi_addr + h->p_vaddr);
    }
    for (; d && d->d_tag != DT_NULL; d++) {
        const void *at = address(info->dlpi_addr, d->d_un.d_ptr);
        if (d->d_tag == DT_SYMTAB) e->symbols = at;
        if (d->d_tag == DT_STRTAB) e->names = at;
        if (d->d_tag == DT_GNU_HASH) e->hash = at;
    }
    return e->symbols && e->names && e->hash;
}

/* The table: numbers of buckets, of symbols left out, of words of a filter, a shift; the filter; for each
 * bucket its first symbol; for each symbol its hash, whose lowest bit ends the bucket. */
static const ElfW(Sym) * look_up(const struct exports *e, const char *name, uint32_t hash) {
    uint32_t bucket_count = e->hash[0], left_out = e->hash[1], words = e->hash[2];
    const uint32_t *buckets = e->hash + 4 + words * (sizeof(ElfW(Addr)) / sizeof *buckets);
    const uint32_t *chain = buckets + bucket_count;
    uint32_t i = bucket_count ? buckets[hash % bucket_count] : 0;
    if (i < left_out) return NULL;
    for (;; i++) {
        uint32_t h = chain[i - left_out];
        const ElfW(Sym) *s = &e->symbols[i];
        bool function = ELF64_ST_TYPE(s->st_info) == STT_FUNC && s->st_shndx != SHN_UNDEF;
        if ((h | 1) == (hash | 1) && function && strcmp(e->names + s->st_name, name) == 0) return s;
        if (h & 1) return NULL;
    }
}

static int look_into(struct dl_phdr_info *info, size_t size, void *arg) {
    struct search *s = arg;
    struct exports e;
    (void)size;
    const ElfW(Sym) *sym = exports_of(info, &e) ? look_up(&e, s->name, s->hash) : NULL;
    if (sym) s->found = (void *)(info->dlpi_addr + sym->st_value);
    return sym != NULL;
}
/* NOLINTEND(performance-no-int-to-ptr) */

void *coil__dl_find(const char *name) {
    struct search s = {.name = name, .hash = hash_of(name)};
    dl_iterate_phdr(look_into, &s);
    return s.found;
}
