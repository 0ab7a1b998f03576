/* Image archives as the helper reads them: metadata.yaml is found, names of entries are cleaned. libarchive itself is not instrumented. */
#include "fuzz.h"
#include "server/instance-helper/helper.h"
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

static char path[64];
static int file = -1;

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    snprintf(path, sizeof(path), "/tmp/covey-fuzz-archive-%d", (int)getpid());
    file = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    must(file >= 0);
    return 0;
}

static void check_name(const uint8_t *data, size_t len)
{
    char out[4096], *name = xmalloc(len + 1);
    struct error err = ERROR_INIT;
    memcpy(name, data, len);
    name[len] = '\0';
    const char *clean = helper__entry_path(name, out, sizeof(out), &err);
    if (clean == NULL)
        must_tell(err);
    else
        must(*clean != '/' && strcmp(clean, "..") != 0 && strncmp(clean, "../", 3) != 0 && strstr(clean, "/../") == NULL && strlen(clean) <= len);
    free(name);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    struct error err = ERROR_INIT;
    check_name(data, len);
    must(ftruncate(file, 0) == 0 && pwrite(file, data, len, 0) == (ssize_t)len);
    json_t *in = json_pack("{s:s}", "path", path), *out = json_object();
    if (helper__metadata(in, out, &err) != STATUS_OK)
        must_tell(err);
    else
        must(json_is_string(json_object_get(out, "metadata")));
    json_decref(in);
    json_decref(out);
    return 0;
}
