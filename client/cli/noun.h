/* What commands of most nouns have in common: get, show, delete, rename, and whole records changed and written back, guarded by their ETag. One thread. */
#ifndef COVEY_CLI_NOUN_H
#define COVEY_CLI_NOUN_H

#include "cli.h"

struct noun {
    const char *service, *type; /* methods are <service>/Get<type> and so on */
    const char *key;            /* the field of requests that names the object */
    const char *label;          /* in texts for people, with a capital letter */
    int (*check)(const json_t *record, struct error *err); /* before it is written back; NULL = nothing to check */
};

extern const struct noun profiles; /* profile.c */

/* `Missing <label> name` when the first word names only a remote. *name is the caller's, NULL on error. */
int noun_resolve(struct cli *cli, const struct noun *noun, struct covey_client **client, char **name, struct error *err);
/* The object that the first word names: *record and *etag are the caller's, NULL on error; etag may be NULL. */
int noun_get(struct cli *cli, const struct noun *noun, struct covey_client **client, json_t **record, char **etag, struct error *err);
/* Writes it back. Takes record and etag; etag NULL = whatever stands there. */
int noun_put(struct cli *cli, const struct noun *noun, struct covey_client *client, json_t *record, char *etag, struct error *err);
/* The edited form of `record`, or what stands on standard input: an object, the caller's. The ETag is dropped then: what comes by pipe replaces. */
int record_edit(struct cli *cli, const json_t *record, char **etag, json_t **changed, struct error *err);

/* Whole commands. */
int noun_show(struct cli *cli, const struct noun *noun, struct error *err);
int noun_delete(struct cli *cli, const struct noun *noun, struct error *err);     /* `<label> <name> deleted` */
int noun_rename(struct cli *cli, const struct noun *noun, struct error *err);     /* `<label> <name> renamed to <new>` */
int noun_get_key(struct cli *cli, const struct noun *noun, struct error *err);    /* of its configuration */
int noun_set_keys(struct cli *cli, const struct noun *noun, struct error *err);   /* also in the old form: key, value */
int noun_unset_key(struct cli *cli, const struct noun *noun, struct error *err);
/* fields: the writable ones, ended by NULL; NULL = all. */
int noun_edit(struct cli *cli, const struct noun *noun, const char *const *fields, struct error *err);
/* The named fields of a record, as a new object. */
json_t *record_only(const json_t *record, const char *const *fields);

#endif
