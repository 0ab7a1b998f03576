/* What the commands about the cluster's database share (admin.c, recover.c, rescue.c). */
#ifndef COVEY_CLIENT_CLI_RECOVER_H
#define COVEY_CLIENT_CLI_RECOVER_H

#include "cli.h"

char *daemon_path(void); /* of coveyd; NULL = not found */
int raft_document(struct cli *cli, struct buf *out, struct error *err); /* what `admin cluster show` prints */
/* `coveyd offline <arguments>` on the stopped member; FAILED_PRECONDITION when it runs. *reply (may be NULL): its JSON. *invalid (may be NULL): the input
 * broke a rule. */
int offline_run(struct cli *cli, const char *const *arguments, const char *input, json_t **reply, bool *invalid, struct error *err);
/* Anything but "yes" fails with `aborted`. */
int ask_yes(struct cli *cli, const char *question, const char *aborted, struct error *err);

#endif
