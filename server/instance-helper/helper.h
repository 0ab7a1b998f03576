/* What the commands of covey-instance share. Single-threaded; every function may block; the caller in the daemon bounds the time. */
#ifndef COVEY_INSTANCE_HELPER_H
#define COVEY_INSTANCE_HELPER_H

#include "proto/core/core.h"
#include <archive.h>
#include <archive_entry.h>
#include <jansson.h>
#include <lxc/lxccontainer.h>

enum {
    HELPER_INPUT_BYTES_MAX = 4 << 20,
    HELPER_CONTROL_FD = 3,
};

/* A command: input in `in`, fills `out` or the error. */
typedef int (*helper_command)(const json_t *in, json_t *out, struct error *err);

int helper__start(const json_t *in, json_t *out, struct error *err);
int helper__stop(const json_t *in, json_t *out, struct error *err);
int helper__halt(const json_t *in, json_t *out, struct error *err);
int helper__freeze(const json_t *in, json_t *out, struct error *err);
int helper__unfreeze(const json_t *in, json_t *out, struct error *err);
int helper__list(const json_t *in, json_t *out, struct error *err);
int helper__settle(const json_t *in, json_t *out, struct error *err);
int helper__state(const json_t *in, json_t *out, struct error *err);
int helper__unpack(const json_t *in, json_t *out, struct error *err);
int helper__metadata(const json_t *in, json_t *out, struct error *err);
int helper__remove_tree(const json_t *in, json_t *out, struct error *err);
int helper__exec(void); /* exit code of the process */

/* Text field or "" ; number field or `otherwise`. */
const char *helper__text(const json_t *in, const char *key);
int64_t helper__number(const json_t *in, const char *key, int64_t otherwise);
/* The container of fields "lxcpath" and "name" (its config file is loaded), NULL with error. Free with lxc_container_put. */
struct lxc_container *helper__container(const json_t *in, struct error *err);
/* Opens an archive for reading with the filters and formats that images may have. */
struct archive *helper__archive_open(int fd, struct error *err);
/* Path of an entry without leading "./" and trailing "/"; NULL and error when it is absolute, has ".." or is too long. */
const char *helper__entry_path(const char *path, char *out, size_t size, struct error *err);

#endif
