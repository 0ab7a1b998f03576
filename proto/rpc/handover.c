/* A TLS server that is given its connections: somebody else accepts them and has looked at their first bytes without taking them.
 *
 * The C core has this for its C++ layer ("external connection acceptors"), not in its C headers: a server that is told to listen on "external:NAME" stores an
 * object in the channel argument of that name, whose method Handle takes a socket. The object's shape belongs to libgrpc.so.29 (core 29, gRPC 1.50 and 1.51): a
 * table of functions whose third entry, after the two destructors of the C++ ABI, is Handle. Another library is refused at start, see handover__supported().
 * Thread: any one at a time. What may fail: a full house, a connection that is gone already; both close the socket. */
#include "rpc_private.h"
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define CORE_SUPPORTED "29."

struct core_handler {
    const struct {
        void (*destroy)(struct core_handler *handler);
        void (*destroy_and_free)(struct core_handler *handler);
        void (*handle)(struct core_handler *handler, int listener_fd, int fd, grpc_byte_buffer *read_already); /* takes fd */
    } *functions;
};

/* A socket that was handed over. The number may be closed and used again by then; the kernel's cookie tells. */
struct taken {
    int fd;
    uint64_t cookie;
};

struct handover {
    struct core_handler *handler; /* gRPC's, as long as its server lives */
    struct taken *taken;
    size_t count;
};

static void *arg_copy(void *p) { return p; }
static void arg_destroy(void *p) { (void)p; }
static int arg_compare(void *a, void *b) { return a < b ? -1 : a > b; }
static const grpc_arg_pointer_vtable arg_functions = {arg_copy, arg_destroy, arg_compare};

bool handover__supported(struct error *err)
{
    if (strncmp(grpc_version_string(), CORE_SUPPORTED, sizeof(CORE_SUPPORTED) - 1) == 0)
        return true;
    error_set(err, STATUS_INTERNAL, "libgrpc core %s is not supported: connections can only be handed to core %sx", grpc_version_string(), CORE_SUPPORTED);
    return false;
}

struct handover *handover__create(void)
{
    return xcalloc(1, sizeof(struct handover));
}

grpc_arg handover__arg(struct handover *handover)
{
    grpc_arg arg;
    memset(&arg, 0, sizeof(arg));
    arg.type = GRPC_ARG_POINTER;
    arg.key = (char *)HANDOVER_TARGET;
    arg.value.pointer.p = &handover->handler; /* written by grpc_server_add_http2_port */
    arg.value.pointer.vtable = &arg_functions;
    return arg;
}

bool handover__ready(const struct handover *handover)
{
    return handover->handler != NULL;
}

void handover__destroy(struct handover *handover)
{
    if (handover != NULL)
        free(handover->taken);
    free(handover);
}

static bool cookie_of(int fd, uint64_t *cookie)
{
    socklen_t size = sizeof(*cookie);
    return getsockopt(fd, SOL_SOCKET, SO_COOKIE, cookie, &size) == 0;
}

/* gRPC does not tell when a connection ends. So they are counted again, but only when too many seem to be open. */
static void forget_closed(struct handover *handover)
{
    size_t kept = 0;
    for (size_t i = 0; i < handover->count; i++) {
        uint64_t cookie;
        if (cookie_of(handover->taken[i].fd, &cookie) && cookie == handover->taken[i].cookie)
            handover->taken[kept++] = handover->taken[i];
    }
    handover->count = kept;
}

void handover__take(struct handover *handover, int fd)
{
    struct taken taken = {.fd = fd};
    int one = 1;

    if (handover->taken == NULL)
        handover->taken = xcalloc(RPC_CONNECTIONS_MAX, sizeof(*handover->taken));
    if (handover->count == RPC_CONNECTIONS_MAX)
        forget_closed(handover);
    if (handover->count == RPC_CONNECTIONS_MAX || !cookie_of(fd, &taken.cookie)) {
        log_warn("rpc.connection.refused", "open=%zu limit=%d", handover->count, RPC_CONNECTIONS_MAX);
        close(fd);
        return;
    }
    handover->taken[handover->count++] = taken;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one)); /* a hint: fails on what is not TCP */
    handover->handler->functions->handle(handover->handler, -1, fd, NULL);
}
