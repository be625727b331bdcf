/* A strict reader of JSON (RFC 8259): what is no JSON to the letter is refused, and values are found by the
 * keys that lead to them. */
#ifndef JSON_H
#define JSON_H

#include <stdbool.h>
#include <stddef.h>
#include <string.h>

enum { JSON_DEPTH_MAX = 32 };

static inline const char *json_blanks(const char *p) {
    return p + strspn(p, " \t\r\n");
}

/* These go past one thing, or give NULL where there is none. */
static inline const char *json_value(const char *p, int depth);

/* ASCII alone: all that coil writes. */
static inline const char *json_string(const char *p) {
    if (*p++ != '"') return NULL;
    for (; *p != '"'; p++) {
        if ((unsigned char)*p < 0x20 || (unsigned char)*p > 0x7e) return NULL;
        if (*p != '\\') continue;
        p++;
        if (*p == 'u') {
            if (strspn(p + 1, "0123456789abcdefABCDEF") < 4) return NULL;
            p += 4;
        } else if (!*p || !strchr("\"\\/bfnrt", *p)) {
            return NULL;
        }
    }
    return p + 1;
}

static inline const char *json_digits(const char *p) {
    size_t n = strspn(p, "0123456789");
    return n ? p + n : NULL;
}

static inline const char *json_number(const char *p) {
    if (*p == '-') p++;
    if (*p == '0' && p[1] >= '0' && p[1] <= '9') return NULL;
    p = json_digits(p);
    if (p && *p == '.') p = json_digits(p + 1);
    if (p && (*p == 'e' || *p == 'E')) {
        p++;
        p = json_digits(*p == '+' || *p == '-' ? p + 1 : p);
    }
    return p;
}

/* The value that belongs to the key at p. */
static inline const char *json_behind_key(const char *p) {
    p = json_string(p);
    if (!p) return NULL;
    p = json_blanks(p);
    return *p == ':' ? json_blanks(p + 1) : NULL;
}

/* An object or a list, whose bracket is at p. */
static inline const char *json_composite(const char *p, int depth) {
    char open = *p, close = open == '{' ? '}' : ']';
    if (depth >= JSON_DEPTH_MAX) return NULL;
    p = json_blanks(p + 1);
    if (*p == close) return p + 1;
    for (;;) {
        if (open == '{') p = json_behind_key(p);
        if (p) p = json_value(p, depth + 1);
        if (!p) return NULL;
        p = json_blanks(p);
        if (*p == close) return p + 1;
        if (*p != ',') return NULL;
        p = json_blanks(p + 1);
    }
}

static inline const char *json_value(const char *p, int depth) {
    static const char *const words[] = {"true", "false", "null"};
    if (*p == '{' || *p == '[') return json_composite(p, depth);
    if (*p == '"') return json_string(p);
    for (unsigned i = 0; i < sizeof words / sizeof *words; i++) {
        if (strncmp(p, words[i], strlen(words[i])) == 0) return p + strlen(words[i]);
    }
    return json_number(p);
}

/* Whether the text is one JSON value and nothing else. */
static inline bool json_ok(const char *text) {
    const char *p = json_value(json_blanks(text), 0);
    return p && *json_blanks(p) == '\0';
}

/* Where the value begins to which `path` leads: keys, a dot between two ("io_uring.calls"). NULL: nowhere.
 * The text must be JSON. */
static inline const char *json_at(const char *text, const char *path) {
    const char *p = json_blanks(text);
    while (*path) {
        size_t n = strcspn(path, ".");
        if (*p != '{') return NULL;
        for (p = json_blanks(p + 1); *p != '}'; p = json_blanks(p)) {
            bool found = strncmp(p + 1, path, n) == 0 && p[n + 1] == '"';
            p = json_behind_key(p);
            if (found) break;
            p = json_blanks(json_value(p, 0));
            if (*p == ',') p++;
        }
        if (*p == '}') return NULL;
        path += n + (path[n] == '.');
    }
    return p;
}

/* Whether the value there is written exactly so. */
static inline bool json_is(const char *text, const char *path, const char *value) {
    const char *p = json_at(text, path);
    return p && strncmp(p, value, strlen(value)) == 0 && json_value(p, 0) == p + strlen(value);
}

#endif
