/* Between the files of this folder. */
#ifndef COVEY_SERVER_AUTH_CERTIFICATES_PRIVATE_H
#define COVEY_SERVER_AUTH_CERTIFICATES_PRIVATE_H

#include "certificates.h"
#include "tokens.h"

#include "covey/v1/certificate.pb-c.h"
#include "server/operations/operations.h"

enum certificate_type { CERTIFICATE_CLIENT = 1, CERTIFICATE_SERVER = 2, CERTIFICATE_METRICS = 3 };

enum certificate_type certificate_type_of(const char *name); /* 0 = unknown */
const char *certificate_type_name(int64_t type);
/* Replaces the projects that a certificate is limited to; `Project not found` names none. */
int certificate_set_projects(struct sql *sql, int64_t id, char *const *projects, size_t count, struct error *err);
void certificate_event(const char *action, const char *fingerprint, const struct caller *caller);
rpc_handler certificate_create_handler(void);
const struct op_kind *certificate_token_kind(void);

#endif
