// What a group needs of a machine: see src/native/requirements.ts for the types.
#pragma once

#include <napi.h>

namespace replpage::binding {

// gatherRequirements(pids) -> Promise<{bytes, files}>
Napi::Value gather(const Napi::CallbackInfo& info);

// checkRequirements(bytes, {keepFiles}) -> Promise<{unmet, files}>; rejects with ERR_FORMAT.
Napi::Value check(const Napi::CallbackInfo& info);

}  // namespace replpage::binding
