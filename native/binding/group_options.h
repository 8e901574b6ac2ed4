// Reads NativeGroupOptions (src/native/group.ts) and checks every member.
#pragma once

#include <napi.h>

#include "core/capture/group_types.h"

namespace replpage::binding {

// Throws Napi::TypeError naming the member that is missing or of the wrong type.
GroupOptions read_group_options(const Napi::Object& object);
PagingOrder read_paging_order(const Napi::Object& object);

}  // namespace replpage::binding
