/* What a member gives up when it leaves its cluster: image files, networks and the local parts of pools. Runs at start, before anything is served. */
#include "host_private.h"
#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void clear_images(struct host *host)
{
    char *path = xasprintf("%s/images", host->state_dir);
    DIR *dir = opendir(path);
    for (struct dirent *entry; dir && (entry = readdir(dir));) {
        if (entry->d_name[0] != '.' && unlinkat(dirfd(dir), entry->d_name, 0) < 0)
            log_warn("image.clean", "file=%s errno=%d", entry->d_name, errno);
    }
    if (dir)
        closedir(dir);
    free(path);
}

static void clear_networks(struct host *host)
{
    Covey__Internal__V1__HostNetworks all = COVEY__INTERNAL__V1__HOST_NETWORKS__INIT;
    struct arena arena;
    arena_init(&arena);
    networks__list(host, &arena, &all);
    for (size_t i = 0; i < all.n_networks; i++) {
        struct error err = ERROR_INIT;
        if (networks__remove(host, all.networks[i], &err))
            log_warn("network.clear", "network=%s error=\"%s\"", all.networks[i]->name, err.text);
    }
    arena_clear(&arena);
}

void host_clear(struct host *host, Covey__Internal__V1__PoolSpec *const *pools, size_t count)
{
    clear_images(host);
    clear_networks(host);
    for (size_t i = 0; i < count; i++) {
        struct error err = ERROR_INIT;
        if (pools__delete(host, pools[i], &err))
            log_warn("pool.clear", "pool=%s error=\"%s\"", pools[i]->name, err.text);
    }
}
