/* Sockets that a service manager opened before it started this process (sd_listen_fds(3): LISTEN_PID, LISTEN_FDS, descriptors from 3 on). */
#include "core.h"
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { FIRST_FD = 3, FDS_MAX = 64 };

int inherited_count(void)
{
    int64_t pid = 0, count = 0;
    const char *for_whom = getenv("LISTEN_PID"), *how_many = getenv("LISTEN_FDS");
    if (for_whom == NULL || how_many == NULL || parse_i64(for_whom, 1, INT32_MAX, &pid) != 0 || pid != getpid() || parse_i64(how_many, 1, FDS_MAX, &count) != 0)
        return 0;
    return (int)count;
}

int inherited_socket(const char *path)
{
    int count = inherited_count();
    for (int fd = FIRST_FD; fd < FIRST_FD + count; fd++) {
        struct sockaddr_un address = {0};
        socklen_t len = sizeof(address), flag_len = sizeof(int);
        int listening = 0;
        if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &flag_len) != 0 || !listening || getsockname(fd, (struct sockaddr *)&address, &len) != 0 ||
            address.sun_family != AF_UNIX || strncmp(address.sun_path, path, sizeof(address.sun_path)) != 0)
            continue;
        return fcntl(fd, F_SETFD, FD_CLOEXEC) == 0 && fcntl(fd, F_SETFL, O_NONBLOCK) == 0 ? fd : -1;
    }
    return -1;
}
