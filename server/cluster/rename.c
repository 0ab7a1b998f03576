/* RenameMember (spec/cluster.md 9.1): a name is an ordinary column, so one transaction changes it, whether the member is there or not. The name of its server certificate goes
 * with it. Members learn names from the view, the renamed one too (view_install); one that is away learns it when it is back. */
#include "cluster.h"

#include "server/events/events.h"
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

static int rename_write(struct sql *sql, void *ud, struct buf *result, struct error *err)
{
    const Covey__V1__RenameMemberRequest *request = ud;
    int64_t id = 0, taken = 0;
    char *fingerprint = NULL;
    int status = sql_get_int(sql, &id, err, "SELECT id FROM nodes WHERE name = ?1 AND state <> 1", "s", request->name);
    if (status == STATUS_NOT_FOUND) {
        return error_set(err, STATUS_NOT_FOUND, "expected to update one row, not 0");
    }
    status = status == STATUS_OK ? sql_get_int(sql, &taken, err, "SELECT count(*) FROM nodes WHERE name = ?1", "s", request->server_name) : status;
    if (status == STATUS_OK && taken > 0) {
        return error_set(err, STATUS_ALREADY_EXISTS, "Conflict");
    }
    status = status == STATUS_OK ? sql_exec(sql, err, "UPDATE nodes SET name = ?2 WHERE id = ?1", "is", id, request->server_name) : status;
    status = status == STATUS_OK ? sql_get_text(sql, &fingerprint, err, "SELECT fingerprint FROM nodes WHERE id = ?1", "i", id) : status;
    if (status == STATUS_OK) {
        status = sql_exec(sql, err, "UPDATE certificates SET name = ?2 WHERE type = 2 AND fingerprint = ?1", "ss", fingerprint, request->server_name);
    }
    free(fingerprint);
    return status;
}

int member_rename(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud)
{
    const Covey__V1__RenameMemberRequest *request = (const Covey__V1__RenameMemberRequest *)message;
    bool replayed = false;
    if (!daemon_clustered(the_daemon)) {
        return error_set(err, STATUS_INVALID_ARGUMENT, "Server is not clustered");
    }
    if (member_name_check(request->server_name, err) != STATUS_OK) {
        return err->code;
    }
    int status = daemon_write_call(call, "rename", rename_write, (void *)request, NULL, &replayed, err);
    if (status == STATUS_OK) {
        view_propagate(the_daemon);
    }
    if (status == STATUS_OK && !replayed) {
        char source[128];
        snprintf(source, sizeof source, "/1.0/cluster/members/%s", request->server_name);
        json_t *context = json_pack("{s:s}", "old_name", request->name);
        char *text = json_dumps(context, JSON_COMPACT);
        events_lifecycle("cluster-member-renamed", source, "default", rpc_caller(call), text, NULL);
        free(text);
        json_decref(context);
    }
    return status;
}
