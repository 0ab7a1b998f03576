/* ETags: SHA-256 over the JSON of the writable fields (spec/api.md 1.8). Pure. */
#ifndef COVEY_SERVER_DAEMON_ETAG_H
#define COVEY_SERVER_DAEMON_ETAG_H

#include "proto/rpc/codec.h"

/* Hex, in arena, over the named fields ("a,b,c") of the message. */
char *etag_make(struct arena *arena, const ProtobufCMessage *message, const char *fields);
/* "" always passes; quotes are optional. STATUS_ABORTED `ETag doesn't match: <ours> vs <theirs>`. */
int etag_check(const char *if_match, const char *etag, struct error *err);

#endif
