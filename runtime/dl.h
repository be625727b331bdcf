/* Functions of the program's libraries, by name. */
#ifndef COIL__DL_H
#define COIL__DL_H

/* The function that the program or a library of its exports under that name; NULL: there is none, as in a
 * static program. The linker is not told of it: named in the source, dlopen would bring a static program a
 * warning and code that it can't use. */
void *coil__dl_find(const char *name);

#endif
