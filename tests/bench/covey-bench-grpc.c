/* gRPC load for tests/bench/run: one unary method again and again with N calls outstanding over one TLS channel to each member.
 *
 *   covey_bench_grpc --address H:P[,H:P…] --cert BASE --server-cert FILE --call covey.v1.Profiles/UpdateProfile --json TEXT [--connections N] [--seconds S]
 *
 * BASE.crt and BASE.key are the client's certificate, FILE the members' (pinned). In TEXT every `%N` becomes the number of the call. Prints one line of JSON like
 * covey-bench. Calls are made on the queue's thread as answers come in; the main thread waits. */
#include "proto/rpc/rpc.h"

#include <getopt.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ADDRESSES_MAX = 16, CALLS_MAX = 1024, SAMPLES_MAX = 8 << 20, ERRORS_MAX = 1000 };

struct slot {
    struct rpc_channel *channel;
    int64_t began_us;
};

static struct {
    const struct method *method;
    const char *json;
    int64_t end_ms;
    pthread_mutex_t lock; /* protects the rest */
    pthread_cond_t ended;
    unsigned outstanding;
    uint64_t next;
    uint32_t *samples; /* microseconds */
    size_t count, errors;
    char last_error[ERROR_TEXT_MAX];
} bench = {.lock = PTHREAD_MUTEX_INITIALIZER, .ended = PTHREAD_COND_INITIALIZER};

static int64_t now_us(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

static void call(struct slot *slot);

static void answered(int status, const ProtobufCMessage *response, const struct error *err, void *ud)
{
    struct slot *slot = ud;
    int64_t took = now_us() - slot->began_us;
    pthread_mutex_lock(&bench.lock);
    if (status != STATUS_OK) {
        bench.errors++;
        snprintf(bench.last_error, sizeof bench.last_error, "%s", err->text);
    } else if (bench.count < SAMPLES_MAX) {
        bench.samples[bench.count++] = (uint32_t)took;
    }
    bool more = time_mono_ms() < bench.end_ms && bench.errors < ERRORS_MAX;
    if (!more && --bench.outstanding == 0) {
        pthread_cond_signal(&bench.ended);
    }
    pthread_mutex_unlock(&bench.lock);
    if (more) {
        call(slot);
    }
}

static void call(struct slot *slot)
{
    struct arena arena;
    struct error err = ERROR_INIT;
    struct buf text = {0};
    pthread_mutex_lock(&bench.lock);
    uint64_t number = bench.next++;
    pthread_mutex_unlock(&bench.lock);
    for (const char *at = bench.json, *mark; *at != '\0'; at = mark != NULL ? mark + 2 : at + strlen(at)) {
        mark = strstr(at, "%N");
        buf_add(&text, at, mark != NULL ? (size_t)(mark - at) : strlen(at));
        if (mark != NULL) {
            buf_printf(&text, "%" PRIu64, number);
        }
    }
    arena_init(&arena);
    json_t *object = json_loads(text.data, 0, NULL);
    ProtobufCMessage *request = object != NULL ? codec_from_json(bench.method->input, object, &arena, &err) : NULL;
    if (request == NULL) {
        fprintf(stderr, "covey-bench-grpc: bad --json: %s\n", err.text);
        exit(1);
    }
    struct rpc_options options = {.timeout_ms = 10000};
    slot->began_us = now_us();
    rpc_unary_async(slot->channel, bench.method, request, &options, answered, slot);
    json_decref(object);
    buf_free(&text);
    arena_clear(&arena);
}

static int by_value(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

static double at_rank(double rank)
{
    return bench.count > 0 ? bench.samples[(size_t)((double)(bench.count - 1) * rank)] / 1000.0 : 0;
}

int main(int argc, char **argv)
{
    static const struct option table[] = {{"address", 1, NULL, 'a'}, {"cert", 1, NULL, 'c'}, {"server-cert", 1, NULL, 's'}, {"call", 1, NULL, 'm'}, {"json", 1, NULL, 'j'},
        {"connections", 1, NULL, 'n'}, {"seconds", 1, NULL, 't'}, {0}};
    char *addresses = NULL, *base = NULL, *server = NULL, *name = NULL;
    unsigned outstanding = 1;
    double seconds = 5;
    bench.json = "{}";
    for (int c; (c = getopt_long(argc, argv, "", table, NULL)) != -1;) {
        switch (c) {
        case 'a': addresses = optarg; break;
        case 'c': base = optarg; break;
        case 's': server = optarg; break;
        case 'm': name = optarg; break;
        case 'j': bench.json = optarg; break;
        case 'n': outstanding = (unsigned)atoi(optarg); break;
        case 't': seconds = atof(optarg); break;
        default: return 2;
        }
    }
    char *method = name != NULL ? strchr(name, '/') : NULL;
    if (addresses == NULL || base == NULL || server == NULL || method == NULL || outstanding < 1 || outstanding > CALLS_MAX) {
        fprintf(stderr, "usage: covey_bench_grpc --address A[,A] --cert BASE --server-cert FILE --call SERVICE/METHOD [--json TEXT] [--connections N] [--seconds S]\n");
        return 2;
    }
    *method++ = '\0';
    struct error err = ERROR_INIT;
    struct identity identity = {0};
    struct buf pem = {0};
    char fingerprint[FINGERPRINT_SIZE], *cert = xasprintf("%s.crt", base), *key = xasprintf("%s.key", base);
    registry_init();
    rpc_init();
    bench.method = registry_method_by_name(name, method);
    if (bench.method == NULL || identity_load(cert, key, &identity, &err) != STATUS_OK || file_read(server, 1 << 20, &pem, &err) != STATUS_OK ||
        cert_fingerprint(pem.data, fingerprint, &err) != STATUS_OK) {
        fprintf(stderr, "covey-bench-grpc: %s\n", bench.method == NULL ? "unknown method" : err.text);
        return 1;
    }
    struct rpc_channel *channels[ADDRESSES_MAX];
    size_t channel_count = 0;
    for (char *save = NULL, *one = strtok_r(addresses, ",", &save); one != NULL && channel_count < ADDRESSES_MAX; one = strtok_r(NULL, ",", &save)) {
        channels[channel_count++] = rpc_channel_tls(one, fingerprint, NULL, &identity);
    }
    struct slot *slots = xcalloc(outstanding, sizeof *slots);
    bench.samples = xmalloc(SAMPLES_MAX * sizeof *bench.samples);
    bench.outstanding = outstanding;
    int64_t begin = time_mono_ms();
    bench.end_ms = begin + (int64_t)(seconds * 1000);
    for (unsigned i = 0; i < outstanding; i++) {
        slots[i].channel = channels[i % channel_count];
        call(&slots[i]);
    }
    pthread_mutex_lock(&bench.lock);
    while (bench.outstanding > 0) {
        pthread_cond_wait(&bench.ended, &bench.lock);
    }
    pthread_mutex_unlock(&bench.lock);
    double took = (double)(time_mono_ms() - begin) / 1000;
    qsort(bench.samples, bench.count, sizeof *bench.samples, by_value);
    if (bench.errors > 0) {
        fprintf(stderr, "covey-bench-grpc: %zu errors, last: %s\n", bench.errors, bench.last_error);
    }
    printf("{\"requests\": %zu, \"errors\": %zu, \"seconds\": %.2f, \"per_second\": %.1f, \"p50_ms\": %.3f, \"p99_ms\": %.3f, \"max_ms\": %.3f}\n", bench.count, bench.errors,
        took, (double)bench.count / took, at_rank(0.5), at_rank(0.99), at_rank(1));
    return bench.count > 0 ? 0 : 1;
}
