/* coveyd's second life: a command on a stopped member. */
#ifndef COVEY_SERVER_RECOVERY_OFFLINE_H
#define COVEY_SERVER_RECOVERY_OFFLINE_H

enum { OFFLINE_RUNNING = 3, OFFLINE_INVALID = 4 }; /* exit codes; client/cli/recover.c knows them */

int offline_main(int argc, char **argv); /* argv[0] is "offline" */

#endif
