/* The first bytes of a connection, before TLS. */
#include "fuzz.h"
#include "server/daemon/client_hello.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    if (len > 0) {
        size_t wanted = client_hello_wanted(data, len);
        must(wanted > 0 && wanted <= (len > CLIENT_HELLO_BYTES_MAX ? len : CLIENT_HELLO_BYTES_MAX));
        bool grpc = client_hello_is_grpc(data, len);
        must(!grpc || data[0] == 22);
        must(!grpc || wanted > len || client_hello_is_grpc(data, wanted)); /* what follows the record changes nothing */
    }
    return 0;
}
