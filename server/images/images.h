/* Images: records on the leader, files on members. images_synchronize is for others (configuration, the hourly timer); the rest is shared by this folder. */
#ifndef COVEY_SERVER_IMAGES_IMAGES_H
#define COVEY_SERVER_IMAGES_IMAGES_H

#include "covey/internal/v1/image.pb-c.h"
#include "covey/v1/image.pb-c.h"
#include "server/daemon/daemon.h"
#include "server/operations/operations.h"

enum {
    IMAGES_MAX = 100000,           /* of one list */
    IMAGE_ALIASES_MAX = 10000,     /* of one image, and of one list times ten */
    IMAGE_ALIAS_BYTES_MAX = 255,
    IMAGE_PROPERTIES_COUNT_MAX = 1024,
    IMAGE_TEXT_BYTES_MAX = 4096,   /* of a property or a description */
    IMAGE_CHUNK_BYTES_MAX = 1 << 20,
    IMAGE_HOLDERS_MAX = 1024,
    IMAGES_SYNC_INTERVAL_S = 3600, /* how often the leader should call images_synchronize */
};

/* Any thread that may block, any member: the leader starts the operation "Synchronizing images" (or lets the running one go round again). Call it hourly on
 * the leader, when cluster.images_minimal_replica was raised, after a join and after a removal. */
int images_synchronize(struct daemon *daemon, struct error *err);
/* On the leader, before a member goes: copies images that only this member holds to others, as many as cluster.images_minimal_replica asks for (one copy is
 * enough when it is 1: then they stay where they are). Blocks until done; the first failure ends it. */
int images_secure(struct daemon *daemon, uint64_t member, struct error *err);

/* ---- records.c: inside a transaction ---- */
/* The project whose images a project uses (features.images = false: those of default). */
int image_project(struct sql *sql, const char *project, int64_t *id, struct error *err);
/* By fingerprint or unambiguous prefix; STATUS_NOT_FOUND `Image not found`. */
int image_row_find(struct sql *sql, int64_t project, const char *prefix, bool public_only, int64_t *id, struct error *err);
int image_load(struct sql *sql, int64_t id, Covey__V1__Image **image, struct arena *arena, struct error *err);
int image_properties_check(const char *key, const char *value, struct error *err);
/* Sets one property, "" or NULL removes. */
int image_store_property(struct sql *sql, int64_t image, const char *key, const char *value, struct error *err);
int image_alias_check(const char *name, const char *description, struct error *err);
int image_alias_insert(struct sql *sql, int64_t project, int64_t image, const char *name, const char *description, struct error *err);
/* Timestamps to unix ns (0 = unset) and back. */
int image_time(const Google__Protobuf__Timestamp *time, const char *field, int64_t *ns, struct error *err);
Google__Protobuf__Timestamp *image_timestamp(int64_t ns, struct arena *arena);

/* ---- service.c ---- */
/* Restricted clients in a project that is not theirs: 403. */
int image_allowed(struct rpc_call *call, const char *project, struct error *err);
/* Callers that see public images only. */
bool image_public_only(struct rpc_call *call, const char *project);
/* Percent-encodes what may not stand in a path segment. */
char *image_url(struct arena *arena, const char *noun, const char *name, const char *project);

/* ---- upload.c, aliases.c, copies.c ---- */
rpc_handler image_upload_handler(void);
rpc_handler image_export_handler(void);
int image_register(struct rpc_call *call, const Covey__Internal__V1__RegisterImageRequest *request, Covey__V1__Operation **out, struct error *err);
int image_delete(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud);
void image_copies_bind(void); /* covey.internal.v1.Images and the operation kinds */
int alias_list(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud);
int alias_get(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud);
int alias_create(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud);
int alias_update(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud);
int alias_rename(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud);
int alias_delete(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud);

#endif
