/* Allocation that never fails, arenas and growing buffers. An arena or buffer belongs to one thread at a time. */
#include "core.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

void core_oom(void)
{
    static const char text[] = "out of memory\n";
    ssize_t ignored = write(STDERR_FILENO, text, sizeof(text) - 1); /* nothing can be done if this fails too */
    (void)ignored;
    abort();
}

void *xmalloc(size_t size)
{
    void *p = malloc(size ? size : 1);
    if (!p)
        core_oom();
    return p;
}

void *xcalloc(size_t count, size_t size)
{
    void *p = calloc(count ? count : 1, size ? size : 1);
    if (!p)
        core_oom();
    return p;
}

void *xrealloc(void *p, size_t size)
{
    p = realloc(p, size ? size : 1);
    if (!p)
        core_oom();
    return p;
}

char *xstrdup(const char *s)
{
    size_t size = strlen(s) + 1;
    return memcpy(xmalloc(size), s, size);
}

char *xasprintf(const char *fmt, ...)
{
    char *text = NULL;
    va_list args;
    va_start(args, fmt);
    int n = vasprintf(&text, fmt, args);
    va_end(args);
    if (n < 0)
        core_oom();
    return text;
}

/* ---- arenas ---- */

enum {
    ARENA_BLOCK_BYTES = 8192,
    ARENA_OWN_BYTES = 2048, /* from here an allocation gets its own block, so that little of a shared block is wasted */
    ARENA_ALIGN = 16,
};

struct arena_block {
    struct arena_block *next;
    size_t used, size;
    _Alignas(ARENA_ALIGN) char data[];
};

static void *arena_take(struct arena *arena, size_t size)
{
    if (size > SIZE_MAX / 2)
        core_oom();
    size = (size + ARENA_ALIGN - 1) & ~(size_t)(ARENA_ALIGN - 1);
    if (!size)
        size = ARENA_ALIGN;
    arena->bytes += size;
    struct arena_block *head = arena->blocks;
    if (head && head->size - head->used >= size) {
        void *p = head->data + head->used;
        head->used += size;
        return p;
    }
    bool own = size >= ARENA_OWN_BYTES;
    size_t capacity = own ? size : ARENA_BLOCK_BYTES - sizeof(struct arena_block);
    struct arena_block *block = xmalloc(sizeof(*block) + capacity);
    block->size = capacity;
    block->used = size;
    if (own && head) { /* behind the head, whose free room stays in use */
        block->next = head->next;
        head->next = block;
    } else {
        block->next = head;
        arena->blocks = block;
    }
    return block->data;
}

static void *arena_allocator_alloc(void *data, size_t size) { return arena_take(data, size); }
static void arena_allocator_free(void *data, void *p) { } /* everything goes at once in arena_clear */

void arena_init(struct arena *arena)
{
    *arena = (struct arena){.allocator = {arena_allocator_alloc, arena_allocator_free, arena}};
}

void arena_clear(struct arena *arena)
{
    struct arena_block *block = arena->blocks;
    while (block) {
        struct arena_block *next = block->next;
        free(block);
        block = next;
    }
    arena->blocks = NULL;
    arena->bytes = 0;
}

void *arena_alloc(struct arena *arena, size_t size) { return memset(arena_take(arena, size), 0, size); }

void *arena_memdup(struct arena *arena, const void *p, size_t size)
{
    void *copy = arena_take(arena, size);
    if (size)
        memcpy(copy, p, size);
    return copy;
}

char *arena_strndup(struct arena *arena, const char *s, size_t n)
{
    if (!s)
        return NULL;
    n = strnlen(s, n);
    char *copy = arena_take(arena, n + 1);
    memcpy(copy, s, n);
    copy[n] = 0;
    return copy;
}

char *arena_strdup(struct arena *arena, const char *s) { return s ? arena_memdup(arena, s, strlen(s) + 1) : NULL; }

char *arena_printf(struct arena *arena, const char *fmt, ...)
{
    va_list args, again;
    va_start(args, fmt);
    va_copy(again, args);
    int n = vsnprintf(NULL, 0, fmt, args);
    va_end(args);
    covey_assert(n >= 0);
    char *text = arena_take(arena, (size_t)n + 1);
    vsnprintf(text, (size_t)n + 1, fmt, again);
    va_end(again);
    return text;
}

/* ---- buffers ---- */

char *buf_grow(struct buf *buf, size_t len)
{
    size_t need = buf->len + len + 1;
    if (need <= len)
        core_oom();
    if (need > buf->cap) {
        size_t cap = buf->cap ? buf->cap * 2 : 256;
        if (cap < need)
            cap = need;
        buf->data = xrealloc(buf->data, cap);
        buf->cap = cap;
    }
    char *at = buf->data + buf->len;
    buf->len += len;
    buf->data[buf->len] = 0;
    return at;
}

void buf_add(struct buf *buf, const void *data, size_t len)
{
    char *at = buf_grow(buf, len);
    if (len)
        memcpy(at, data, len);
}

void buf_puts(struct buf *buf, const char *s) { buf_add(buf, s, strlen(s)); }

void buf_printf(struct buf *buf, const char *fmt, ...)
{
    va_list args, again;
    va_start(args, fmt);
    va_copy(again, args);
    int n = vsnprintf(NULL, 0, fmt, args);
    va_end(args);
    covey_assert(n >= 0);
    char *at = buf_grow(buf, (size_t)n);
    vsnprintf(at, (size_t)n + 1, fmt, again);
    va_end(again);
}

char *buf_take(struct buf *buf)
{
    char *data = buf->data ? buf->data : xstrdup("");
    *buf = (struct buf){0};
    return data;
}

void buf_free(struct buf *buf)
{
    free(buf->data);
    *buf = (struct buf){0};
}
