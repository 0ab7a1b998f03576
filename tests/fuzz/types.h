/* The message types that the codec is fuzzed with; the first byte of an input chooses one. Keep the order: seeds.py counts on it. */
#ifndef COVEY_TESTS_FUZZ_TYPES_H
#define COVEY_TESTS_FUZZ_TYPES_H

#include "covey/internal/v1/membership.pb-c.h"
#include "covey/internal/v1/raft.pb-c.h"
#include "covey/v1/event.pb-c.h"
#include "covey/v1/image.pb-c.h"
#include "covey/v1/instance.pb-c.h"
#include "covey/v1/operation.pb-c.h"
#include "covey/v1/profile.pb-c.h"
#include "covey/v1/server.pb-c.h"

static const ProtobufCMessageDescriptor *const fuzz_types[] = {
    &covey__v1__profile__descriptor,
    &covey__v1__instance__descriptor,
    &covey__v1__operation__descriptor,
    &covey__v1__event__descriptor,
    &covey__v1__image__descriptor,
    &covey__v1__server_info__descriptor,
    &google__protobuf__struct__descriptor,
    &covey__internal__v1__raft_frame__descriptor,
};
enum { FUZZ_TYPES = sizeof fuzz_types / sizeof *fuzz_types };

#endif
