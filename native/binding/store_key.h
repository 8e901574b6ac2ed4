// The key of page stores, as a person carries it to another machine.
#pragma once

#include <napi.h>

namespace replpage::binding {

// storeKeyText(path) -> text: see StoreKey::text().
Napi::Value store_key_text(const Napi::CallbackInfo& info);

}  // namespace replpage::binding
