// Checkpoints, without a group: finding one, and bringing it back.
#pragma once

#include <napi.h>

namespace replpage::binding {

// findCheckpoint(place) -> Promise of what its manifest says.
Napi::Value find_checkpoint(const Napi::CallbackInfo& info);

// removeCheckpoints(place) -> Promise of {ids, freedBytes}.
Napi::Value remove_found(const Napi::CallbackInfo& info);

// restoreCheckpoint(options) -> Promise of a PromotionReport.
Napi::Value restore(const Napi::CallbackInfo& info);

}  // namespace replpage::binding
