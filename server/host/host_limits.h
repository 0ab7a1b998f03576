/* Every limit of the host agent, with its reason. */
#ifndef COVEY_SERVER_HOST_LIMITS_H
#define COVEY_SERVER_HOST_LIMITS_H

enum {
    /* Waits for the helper, in ms: each is several times what a slow machine needs; after it the helper is killed. */
    HELPER_START_MS_MAX = 60 * 1000,
    HELPER_STOP_MS_MAX = 60 * 1000,
    HELPER_QUICK_MS_MAX = 15 * 1000, /* halt, freeze, state, list */
    HELPER_SETTLE_MS_MAX = 30 * 1000,
    HELPER_LOAD_MS_MAX = 5 * 1000,   /* list of all at the daemon's start; what it did not tell is asked one by one */
    HOST_SETTLE_AGAIN_MS = 30 * 1000, /* after a container's monitor did not answer */
    HELPER_UNPACK_MS_MAX = 30 * 60 * 1000,
    HELPER_REMOVE_MS_MAX = 30 * 60 * 1000,
    HELPER_METADATA_MS_MAX = 5 * 60 * 1000,
    HELPER_ANSWER_BYTES_MAX = 8 << 20,

    HOST_BUSY_WAIT_MS = 90 * 1000,   /* one operation waits for another one on the same container */
    HOST_INSTANCES_MAX = 20000,      /* containers of one host */
    HOST_WATCHERS_MAX = 64,          /* WatchInstances streams */
    HOST_WAIT_SLICE_MS = 500,        /* between looks whether a waiting caller is still there */
    HOST_NAME_BYTES_MAX = 63,        /* instance and pool names; projects the same */
    HOST_CONFIG_VALUE_MAX = 256 << 10,

    IMAGE_CHUNK_BYTES = 512 << 10,   /* of FetchImage; at most 1 MiB by contract */
    IMAGE_UPLOADS_MAX = 64,          /* at a time */
    IMAGE_PULL_MS_MAX = 2 * 60 * 60 * 1000, /* one image from one member */
    IMAGE_METADATA_BYTES_MAX = 1 << 20,
    IMAGE_YAML_DEPTH_MAX = 32,
    IMAGE_YAML_EVENTS_MAX = 200000,
    IMAGE_PROPERTIES_MAX = 1000,

    EXEC_SESSIONS_MAX = 512,         /* running */
    EXEC_REMEMBERED_MAX = 1024,      /* ended ones whose results are kept; beyond, the oldest is forgotten before its time */
    EXEC_STREAMS_WAIT_MS = 5000,     /* for the client to connect its streams (spec/api.md 6.1) */
    EXEC_START_MS_MAX = 30 * 1000,   /* from helper start to running command */
    EXEC_RESULT_KEPT_MS = 60 * 1000, /* for a repeated Exec of the same operation */
    EXEC_STDIN_QUEUE_MAX = 256 << 10,/* bytes from the client not yet taken by the command; beyond, reading pauses */
    EXEC_CHUNK_BYTES = 32 << 10,
    EXEC_RETRY_MS = 10,              /* when a stream's queue is full */
    EXEC_DRAIN_QUIET_MS = 100,       /* output of children that outlive the command is not waited for longer */
    LOG_READ_BYTES = 256 << 10, /* of a log file in one answer */
    EXEC_CONTROL_LINE_MAX = 64 << 10,
    EXEC_EARLY_STREAM_MS = 5 * 1000, /* a stream may come this much before its session */
    EXEC_FIRST_FRAME_MS = 10 * 1000, /* a Connect call must say its secret within this time */
    EXEC_COMMAND_BYTES_MAX = 2 << 20,
    EXEC_LOG_BYTES_MAX = 64 << 20,   /* of one recorded output; what comes after is dropped and the log says so */
};
#define IMAGE_BYTES_MAX (INT64_C(64) << 30) /* one image file */

#endif
