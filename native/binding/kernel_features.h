// What this kernel and this process's rights offer, found by trying, never by version numbers.
#pragma once

#include <napi.h>

namespace replpage::binding {

// probeKernel() -> {release, uffdWp, softDirty, ...}: a flat object of flags, numbers and words.
Napi::Value probe_kernel(const Napi::CallbackInfo& info);

}  // namespace replpage::binding
