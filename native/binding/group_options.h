// Reads NativeGroupOptions (src/native/group.ts) and checks every member.
#pragma once

#include <napi.h>

#include "core/checkpoint/checkpoint_restore.h"
#include "core/checkpoint/checkpoint_taker.h"
#include "core/group/group_types.h"
#include "core/peer/standby_session.h"

namespace replpage::binding {

// Throws Napi::TypeError naming the member that is missing or of the wrong type.
// `primary`: host pid of the group's root.
ReplicaHome read_home(const Napi::Object& object, const ReplicaOptions& group, pid_t primary);
GroupOptions read_group_options(const Napi::Object& object);
PagingOrder read_paging_order(const Napi::Object& object);

// CheckpointRequest, CheckpointPlace and RestoreOptions of src/native/checkpoint.ts.
CheckpointRequest read_checkpoint_request(const Napi::Object& object);
CheckpointPlace read_checkpoint_place(const Napi::Object& object);
RestoreOptions read_restore_options(const Napi::Object& object);

// NodeCredentials and ExpectedReplica of src/native/standby.ts.
NodeCredentials read_credentials(const Napi::Object& object);
StandbyOptions read_standby_options(const Napi::Object& object);

}  // namespace replpage::binding
