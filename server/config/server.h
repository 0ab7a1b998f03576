/* covey.v1.Server and covey.internal.v1.Control: what a server is and how it is configured. server_service_bind is in server/services.h. */
#ifndef COVEY_SERVER_CONFIG_SERVER_H
#define COVEY_SERVER_CONFIG_SERVER_H

#include "covey/v1/server.pb-c.h"
#include "server/daemon/daemon.h"
#include <jansson.h>

/* Addresses where clients reach this member, as a new JSON array of "host:port"; wildcards expanded; empty when not listening. */
json_t *server_addresses(void);
/* The promises of this version: names of spec/api.md 3.2. */
const char *const *api_extensions(size_t *count);

/* ---- between the files of this folder ---- */

Covey__V1__Environment *server__environment(struct arena *arena, const char *project);
/* The configuration as GET /1.0 shows it: global keys from `global` (name to value, hidden ones already "true") and local ones, without defaults. New reference. */
json_t *server__visible_config(const json_t *global, const json_t *local);
/* ETag over visible configuration, in arena. */
char *server__config_etag(struct arena *arena, const json_t *visible);
Google__Protobuf__Struct *server__struct(const json_t *object, struct arena *arena);
/* This member's local keys as stored, as a new object. */
json_t *server__local_config(void);

/* A change as the request asks for it (change.c, pure). */
struct config_change {
    json_t *global, *local; /* key to text, "" = unset */
    json_t *keep;           /* array of hidden keys that stay */
    json_t *written;        /* address key to text as the request has it: refusals quote that, what is stored is canonical */
    bool replace;           /* keys that are not named are unset */
};
/* Reads and checks a request's `config`; all errors in one text. Free by config_change_clear, also after an error. */
int config_change_read(const Google__Protobuf__Struct *config, bool replace, struct config_change *out, struct error *err);
void config_change_clear(struct config_change *change);

void control__bind(void);

#endif
