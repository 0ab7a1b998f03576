/* The choice of a member. Pure; thread: any. */
#include "placement.h"

#include <string.h>

bool architecture_runs(const char *member, const char *wanted)
{
    static const char *const also[][2] = {{"x86_64", "i686"}, {"aarch64", "armv6l"}, {"aarch64", "armv7l"}, {"aarch64", "armv8l"}, {"armv8l", "armv6l"},
        {"armv8l", "armv7l"}, {"armv7l", "armv6l"}, {"ppc64", "ppc"}, {"mips64", "mips"}};
    if (strcmp(member, wanted) == 0) {
        return true;
    }
    for (size_t i = 0; i < sizeof also / sizeof *also; i++) {
        if (strcmp(also[i][0], member) == 0 && strcmp(also[i][1], wanted) == 0) {
            return true;
        }
    }
    return false;
}

int placement_mode_parse(const char *text, enum placement_mode *out)
{
    *out = PLACEMENT_ALL;
    if (text == NULL || text[0] == '\0' || strcmp(text, "all") == 0) {
        return 0;
    }
    if (strcmp(text, "group") == 0) {
        *out = PLACEMENT_GROUP;
        return 0;
    }
    *out = PLACEMENT_MANUAL;
    return strcmp(text, "manual") == 0 ? 0 : -1;
}

static bool candidate(const struct placement_member *member, bool group_requested, const char *wanted)
{
    if (member->state != 0 || !member->online || member->mode == PLACEMENT_MANUAL || !member->project_may) {
        return false;
    }
    if (group_requested ? !member->in_group : member->mode == PLACEMENT_GROUP) {
        return false;
    }
    return wanted == NULL || wanted[0] == '\0' || architecture_runs(member->architecture, wanted);
}

uint64_t placement_choose(const struct placement_member *members, size_t count, bool group_requested, const char *wanted)
{
    const struct placement_member *best = NULL;
    for (size_t i = 0; i < count; i++) {
        const struct placement_member *one = &members[i];
        if (candidate(one, group_requested, wanted) &&
            (best == NULL || one->instances < best->instances || (one->instances == best->instances && one->id < best->id))) {
            best = one;
        }
    }
    return best != NULL ? best->id : 0;
}
