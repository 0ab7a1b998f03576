/* One-time tokens: for joining members and for clients. A row holds the hash of the secret; presenting, revoking or expiry removes it, together with the
 * token's operation. Functions with `sql` run inside a write transaction. */
#ifndef COVEY_SERVER_AUTH_TOKENS_H
#define COVEY_SERVER_AUTH_TOKENS_H

#include "server/daemon/daemon.h"

enum token_kind { TOKEN_JOIN = 1, TOKEN_CLIENT = 2 };
enum { TOKEN_SECRET_BYTES = 32 };

/* Inserts the token of an operation; for TOKEN_JOIN an earlier one for the same name goes away (its uuid + NUL is appended to `replaced`, may be NULL). */
int token_insert(struct sql *sql, const char *uuid, enum token_kind kind, const char *name, const char *secret, int64_t expires_at_ns, const char *request_json,
                 struct buf *replaced, struct error *err);
/* Presents a token: it is removed whatever comes next (also when expired). STATUS_NOT_FOUND: none matches; STATUS_FAILED_PRECONDITION `Token has expired`: the
 * caller must commit this transaction all the same (return OK from its db_write_fn and carry the refusal in its result). uuid (37 bytes) and request_json (malloc'ed, may be
 * NULL) are of the removed token. */
int token_take(struct sql *sql, enum token_kind kind, const char *name, const char *secret, int64_t now_ns, char uuid[37], char **request_json, struct error *err);
/* Leader: removes expired tokens and ends their operations. */
void tokens_sweep(struct daemon *daemon);

/* Raw token text: Base64 of the JSON object (spec/cluster.md 4.2, api.md 2.2). All strings malloc'ed; name is server_name or client_name. */
struct token_text {
    bool join;
    char *name, *fingerprint, *secret;
    char **addresses; /* NULL-terminated */
};
bool token_decode(const char *text, struct token_text *out);
void token_text_free(struct token_text *token);

#endif
