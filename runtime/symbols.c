#include "symbols.h"

#include "dl.h"

#include <dlfcn.h>
#include <elf.h>
#include <fcntl.h>
#include <link.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#ifdef COIL__HAVE_LIBDW
#include <dwarf.h>
#include <elfutils/libdwfl.h>
#endif

enum { OBJECTS_MAX = 64, CACHE_SIZE = 256, INLINED_MAX = 8, PATH_BYTES = 256, HEAD_BYTES = 4096 };

/* The program or a library. */
struct object {
    char path[PATH_BYTES];
    const char *name;
    const char *file; /* what to open; NULL: there is none, as for the vDSO */
    uintptr_t bias;
    const unsigned char *image; /* the mapped file; NULL: it can't be read */
    size_t image_bytes;
#ifdef COIL__HAVE_LIBDW
    Dwfl_Module *module; /* NULL: libdw doesn't know it */
#endif
};

struct answer {
    uintptr_t at; /* the address looked up; 0: none */
    int count;
    struct coil__symbol symbols[INLINED_MAX];
};

struct coil__symbols {
    struct object objects[OBJECTS_MAX];
    int object_count;
#ifdef COIL__HAVE_LIBDW
    Dwfl *dwfl; /* NULL: without libdw */
#endif
    struct answer cache[CACHE_SIZE];
};

/* ---- coil's own ---- */

/* A static function may be called anything, so names do not tell all: the names of coil's source files do,
 * between blanks. */
static bool is_coils_file(const char *file) {
    char needle[PATH_BYTES];
    const char *slash = file ? strrchr(file, '/') : NULL;
    int n = file ? snprintf(needle, sizeof needle, " %s ", slash ? slash + 1 : file) : 0;
    return n > 2 && n < (int)sizeof needle && strstr(COIL__SOURCE_NAMES, needle);
}

/* ---- symbol tables ---- */

static const void *part(const struct object *o, uint64_t offset, uint64_t bytes) {
    if (offset > o->image_bytes || bytes > o->image_bytes - offset) return NULL;
    return o->image + offset;
}

/* The section of that kind; NULL: there is none, or the file is no sound one. */
static const Elf64_Shdr *section(const struct object *o, uint32_t type, const Elf64_Shdr **all,
                                 unsigned *count) {
    const Elf64_Ehdr *e = part(o, 0, sizeof *e);
    if (!e || memcmp(e->e_ident, ELFMAG, SELFMAG) != 0 || e->e_ident[EI_CLASS] != ELFCLASS64) return NULL;
    if (e->e_shentsize != sizeof **all || e->e_shoff % _Alignof(Elf64_Shdr)) return NULL;
    *count = e->e_shnum;
    *all = part(o, e->e_shoff, (uint64_t)e->e_shnum * sizeof **all);
    for (unsigned i = 0; *all && i < *count; i++) {
        if ((*all)[i].sh_type == type) return &(*all)[i];
    }
    return NULL;
}

struct table {
    const Elf64_Sym *at;
    size_t count;
    const char *names;
    size_t names_bytes; /* the last one is zero */
};

static bool table_of(const struct object *o, uint32_t type, struct table *t) {
    const Elf64_Shdr *all = NULL;
    unsigned count = 0;
    const Elf64_Shdr *s = section(o, type, &all, &count);
    if (!s || s->sh_link >= count || s->sh_offset % _Alignof(Elf64_Sym)) return false;
    const Elf64_Shdr *names = &all[s->sh_link];
    t->at = part(o, s->sh_offset, s->sh_size);
    t->count = s->sh_size / sizeof *t->at;
    t->names = part(o, names->sh_offset, names->sh_size);
    t->names_bytes = names->sh_size;
    return t->at && t->names && t->names_bytes && t->names[t->names_bytes - 1] == '\0';
}

static const char *name_of(const struct table *t, const Elf64_Sym *s) {
    return s->st_name < t->names_bytes ? t->names + s->st_name : "";
}

static bool is_coils(const char *function) {
    return function && strncmp(function, "coil_", 5) == 0;
}

/* The nearest functions before and behind an address that are known beyond their own file. */
struct neighbours {
    uintptr_t below_at, above_at;
    const char *below, *above;
};

static void meet(struct neighbours *n, uintptr_t at, const char *name, uintptr_t begin) {
    if (begin <= at && (!n->below || begin > n->below_at)) {
        n->below = name;
        n->below_at = begin;
    } else if (begin > at && (!n->above || begin < n->above_at)) {
        n->above = name;
        n->above_at = begin;
    }
}

/* The function around `at`, an address as in the file. Of several names, a global one. A function that only
 * its file knows is coil's if it lies among such, and comes from a file of such a name where the table tells
 * files (`strip -g` takes them out). One neighbour does not do: a program has files of these names, too, and
 * rather shows a frame of coil's than hides one of the user's. */
static bool find_in_table(const struct table *t, uintptr_t at, struct coil__symbol *out) {
    const char *file = NULL, *its_file = NULL;
    struct neighbours near = {0};
    bool global = false;
    for (size_t i = 0; i < t->count; i++) {
        const Elf64_Sym *s = &t->at[i];
        unsigned type = ELF64_ST_TYPE(s->st_info);
        bool local = ELF64_ST_BIND(s->st_info) == STB_LOCAL;
        if (type == STT_FILE) file = name_of(t, s);
        if (type != STT_FUNC || s->st_shndx == SHN_UNDEF) continue;
        const char *name = name_of(t, s);
        if (!local || is_coils(name)) meet(&near, at, name, s->st_value);
        if (at - s->st_value >= MAX(s->st_size, 1u) || (out->function && global)) continue;
        global = !local;
        its_file = local ? file : NULL;
        out->function = name;
        out->offset = at - s->st_value;
    }
    bool among = is_coils(near.below) && is_coils(near.above) && (!its_file || is_coils_file(its_file));
    out->ours = is_coils(out->function) || (!global && among);
    return out->function != NULL;
}

static void find_by_tables(const struct object *o, uintptr_t at, struct coil__symbol *out) {
    struct table t;
    *out = (struct coil__symbol){.object = o->name, .offset = at - o->bias};
    if (table_of(o, SHT_SYMTAB, &t) && find_in_table(&t, at - o->bias, out)) return;
    if (table_of(o, SHT_DYNSYM, &t)) find_in_table(&t, at - o->bias, out);
}

/* ---- libdw ---- */

#ifdef COIL__HAVE_LIBDW

#define LIBDW_CALLS(X)              \
    X(dwfl_begin)                   \
    X(dwfl_end)                     \
    X(dwfl_report_begin_add)        \
    X(dwfl_report_elf)              \
    X(dwfl_report_end)              \
    X(dwfl_module_addrdie)          \
    X(dwfl_module_nextcu)           \
    X(dwfl_build_id_find_debuginfo) \
    X(dwarf_haspc)                  \
    X(dwarf_getsrc_die)             \
    X(dwarf_linesrc)                \
    X(dwarf_lineno)                 \
    X(dwarf_getscopes)              \
    X(dwarf_getscopes_die)          \
    X(dwarf_tag)                    \
    X(dwarf_diename)                \
    X(dwarf_attr_integrate)         \
    X(dwarf_formudata)              \
    X(dwarf_getsrcfiles)            \
    X(dwarf_filesrc)

/* NOLINTNEXTLINE(bugprone-macro-parentheses): a name is declared */
#define FIELD(f) __typeof__(&(f)) f;
static struct { LIBDW_CALLS(FIELD) } dw;
static bool dw_there;

static void load_libdw(void) {
    __typeof__(&dlopen) open_library;
    __typeof__(&dlsym) symbol;
    /* A function's address comes as a pointer to data. */
    *(void **)(void *)&open_library = coil__dl_find("dlopen");
    *(void **)(void *)&symbol = coil__dl_find("dlsym");
    void *lib = open_library && symbol ? open_library("libdw.so.1", RTLD_NOW | RTLD_LOCAL) : NULL;
    bool all = lib != NULL;
#define LOAD(f)                                    \
    if (all) {                                     \
        *(void **)(void *)&dw.f = symbol(lib, #f); \
        all = dw.f != NULL;                        \
    }
    LIBDW_CALLS(LOAD)
    dw_there = all;
}

bool coil__symbols_lines(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, load_libdw);
    return dw_there;
}

/* Debugging information that was split off is looked for on this machine alone: the standard way would ask
 * servers for it. */
static void open_libdw(struct coil__symbols *s) {
    static Dwfl_Callbacks callbacks;
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    if (!coil__symbols_lines()) return;
    pthread_mutex_lock(&lock);
    callbacks.find_debuginfo = dw.dwfl_build_id_find_debuginfo;
    pthread_mutex_unlock(&lock);
    s->dwfl = dw.dwfl_begin(&callbacks);
}

static void close_libdw(struct coil__symbols *s) {
    if (s->dwfl) dw.dwfl_end(s->dwfl);
}

static void introduce(struct coil__symbols *s, struct object *o) {
    if (!s->dwfl || !o->image) return;
    dw.dwfl_report_begin_add(s->dwfl);
    o->module = dw.dwfl_report_elf(s->dwfl, o->name, o->file, -1, o->bias, true);
    dw.dwfl_report_end(s->dwfl, NULL, NULL);
}

static Dwarf_Word number(Dwarf_Die *die, unsigned attribute) {
    Dwarf_Attribute a;
    Dwarf_Word v = 0;
    return dw.dwarf_attr_integrate(die, attribute, &a) && dw.dwarf_formudata(&a, &v) == 0 ? v : 0;
}

/* By where this file was when it was compiled. */
static bool in_coils_tree(const char *unit) {
    static const char here[] = __FILE__, tail[] = "runtime/symbols.c";
    size_t n = sizeof here - sizeof tail;
    return strncmp(unit, here, n) == 0 &&
           (strncmp(unit + n, "runtime/", 8) == 0 || strncmp(unit + n, "net/", 4) == 0);
}

/* The compiler's word, if it has one: a program may have named its functions like coil's. A unit that
 * link-time optimisation has made up has a name like "<artificial>". */
static bool is_ours(const char *unit, const struct coil__symbol *by_tables) {
    return unit && *unit && *unit != '<' ? in_coils_tree(unit) : by_tables->ours;
}

/* From the innermost scope outwards: each function that was put into another one says from which line. */
static int take_scopes(Dwarf_Die *scopes, int n, struct coil__symbol *where, struct answer *a) {
    Dwarf_Die *unit = &scopes[n - 1];
    Dwarf_Files *files = NULL;
    const char *unit_name = dw.dwarf_diename(unit);
    if (dw.dwarf_getsrcfiles(unit, &files, NULL) != 0) files = NULL;
    a->count = 0;
    for (int i = 0; i < n && a->count < INLINED_MAX; i++) {
        int tag = dw.dwarf_tag(&scopes[i]);
        if (tag != DW_TAG_inlined_subroutine && tag != DW_TAG_subprogram) continue;
        struct coil__symbol *sym = &a->symbols[a->count++];
        *sym = *where;
        const char *name = dw.dwarf_diename(&scopes[i]);
        if (name) sym->function = name;
        sym->ours = is_ours(unit_name, where);
        if (tag == DW_TAG_subprogram) break;
        Dwarf_Word file = number(&scopes[i], DW_AT_call_file);
        where->file = files ? dw.dwarf_filesrc(files, file, NULL, NULL) : NULL;
        where->line = (int)number(&scopes[i], DW_AT_call_line);
    }
    return a->count;
}

/* The unit of source around an address. There is a table of them, which some compilers leave out. */
static Dwarf_Die *unit_at(const struct object *o, uintptr_t at, Dwarf_Addr *bias) {
    if (!o->module) return NULL;
    Dwarf_Die *unit = dw.dwfl_module_addrdie(o->module, at, bias);
    if (unit) return unit;
    while ((unit = dw.dwfl_module_nextcu(o->module, unit, bias))) {
        if (dw.dwarf_haspc(unit, at - *bias) == 1) return unit;
    }
    return NULL;
}

/* The scopes around an address are those of the abstract function from the first inlined one on; those around
 * a scope are as the code lies. */
static bool find_by_libdw(const struct object *o, struct answer *a) {
    Dwarf_Addr bias;
    Dwarf_Die *scopes = NULL, *around = NULL;
    struct coil__symbol where = a->symbols[0];
    Dwarf_Die *unit = unit_at(o, a->at, &bias);
    if (!unit) return false;
    Dwarf_Line *line = dw.dwarf_getsrc_die(unit, a->at - bias);
    if (line) where.file = dw.dwarf_linesrc(line, NULL, NULL);
    if (line) dw.dwarf_lineno(line, &where.line);
    int n = dw.dwarf_getscopes(unit, a->at - bias, &scopes), m = 0;
    if (n > 0) m = dw.dwarf_getscopes_die(&scopes[0], &around);
    bool found = m > 0 && take_scopes(around, m, &where, a) > 0;
    if (n > 0) free(scopes);
    if (m > 0) free(around);
    return found;
}

#else

bool coil__symbols_lines(void) {
    return false;
}

static void open_libdw(struct coil__symbols *s) {
    (void)s;
}

static void close_libdw(struct coil__symbols *s) {
    (void)s;
}

static void introduce(struct coil__symbols *s, struct object *o) {
    (void)s;
    (void)o;
}

static bool find_by_libdw(const struct object *o, struct answer *a) {
    (void)o;
    (void)a;
    return false;
}

#endif

/* ---- objects ---- */

static void map_image(struct object *o) {
    struct stat st;
    int fd = o->file ? open(o->file, O_RDONLY | O_CLOEXEC) : -1;
    if (fd < 0) return;
    if (fstat(fd, &st) == 0 && st.st_size > 0) {
        void *m = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (m != MAP_FAILED) {
            o->image = m;
            o->image_bytes = (size_t)st.st_size;
        }
    }
    close(fd);
}

/* The program is opened by the kernel's link to it, which holds when its file was replaced or removed. */
static void set_path(struct object *o, const char *path) {
    static const char program[] = "/proc/self/exe", deleted[] = " (deleted)";
    if (*path) {
        snprintf(o->path, sizeof o->path, "%s", path);
        o->file = strchr(path, '/') ? o->path : NULL;
    } else {
        ssize_t n = MAX(readlink(program, o->path, sizeof o->path - 1), 0);
        o->path[n] = '\0';
        ssize_t rest = n - (ssize_t)(sizeof deleted - 1);
        if (rest > 0 && strcmp(o->path + rest, deleted) == 0) o->path[rest] = '\0';
        o->file = program;
    }
    const char *slash = strrchr(o->path, '/');
    o->name = slash ? slash + 1 : o->path;
}

struct search {
    uintptr_t at, bias;
    const void *head; /* the beginning of its file, as it was loaded; NULL: not among what was */
    size_t head_bytes;
    char path[PATH_BYTES];
};

/* A library may have been replaced since it was loaded; its file would tell wrong names then. The head of a
 * file has its build-id, and is never written to in memory. */
static void forget_replaced(struct object *o, const struct search *found) {
    bool same = found->head && found->head_bytes <= o->image_bytes &&
                memcmp(found->head, o->image, found->head_bytes) == 0;
    if (same || !o->image) return;
    munmap((void *)(uintptr_t)o->image, o->image_bytes);
    o->image = NULL;
}

static void find_head(const struct dl_phdr_info *info, struct search *s) {
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *h = &info->dlpi_phdr[i];
        if (h->p_type != PT_LOAD || h->p_offset != 0) continue;
        s->head = (const void *)(info->dlpi_addr + h->p_vaddr); /* NOLINT(performance-no-int-to-ptr) */
        s->head_bytes = MIN(h->p_filesz, (size_t)HEAD_BYTES);
        return;
    }
}

static int look_into(struct dl_phdr_info *info, size_t size, void *arg) {
    (void)size;
    struct search *s = arg;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *h = &info->dlpi_phdr[i];
        if (h->p_type != PT_LOAD || s->at - (info->dlpi_addr + h->p_vaddr) >= h->p_memsz) continue;
        s->bias = info->dlpi_addr;
        snprintf(s->path, sizeof s->path, "%s", info->dlpi_name ? info->dlpi_name : "");
        find_head(info, s);
        return 1;
    }
    return 0;
}

/* The object around an address; NULL: there is none. */
static struct object *object_at(struct coil__symbols *s, uintptr_t at) {
    struct search found = {.at = at};
    if (!dl_iterate_phdr(look_into, &found)) return NULL;
    struct object *o = s->objects, *end = o + s->object_count;
    for (; o < end; o++) {
        if (o->bias == found.bias) return o;
    }
    if (s->object_count == OBJECTS_MAX) return NULL;
    s->object_count++;
    o->bias = found.bias;
    set_path(o, found.path);
    map_image(o);
    forget_replaced(o, &found);
    introduce(s, o);
    return o;
}

/* ---- the calls ---- */

struct coil__symbols *coil__symbols_open(void) {
    struct coil__symbols *s = calloc(1, sizeof *s);
    if (s) open_libdw(s);
    return s;
}

void coil__symbols_close(struct coil__symbols *s) {
    if (!s) return;
    close_libdw(s);
    for (int i = 0; i < s->object_count; i++) {
        struct object *o = &s->objects[i];
        if (o->image) munmap((void *)(uintptr_t)o->image, o->image_bytes);
    }
    free(s);
}

static struct answer *answer_for(struct coil__symbols *s, uintptr_t at) {
    struct answer *a = &s->cache[(at * UINT64_C(0x9e3779b97f4a7c15)) >> 56];
    if (a->at == at) return a;
    *a = (struct answer){.at = at, .count = 1, .symbols = {{.offset = at}}};
    struct object *o = object_at(s, at);
    if (!o) return a;
    find_by_tables(o, at, &a->symbols[0]);
    if (!find_by_libdw(o, a)) a->count = 1;
    return a;
}

int coil__symbols_find(struct coil__symbols *s, const void *pc, const struct coil__symbol **out) {
    static _Thread_local struct coil__symbol plain;
    uintptr_t at = (uintptr_t)pc - 1;
    if (!s) {
        plain = (struct coil__symbol){.offset = at};
        *out = &plain;
        return 1;
    }
    const struct answer *a = answer_for(s, at);
    *out = a->symbols;
    return a->count;
}

void coil__symbol_print(FILE *out, const struct coil__symbol *sym) {
    const char *what = sym->function ? sym->function : sym->object;
    if (!what) {
        fprintf(out, "0x%jx", (uintmax_t)sym->offset);
    } else if (sym->file && sym->function) {
        fprintf(out, "%s at %s:%d", what, sym->file, sym->line);
    } else {
        fprintf(out, "%s+0x%jx", what, (uintmax_t)sym->offset);
    }
}
