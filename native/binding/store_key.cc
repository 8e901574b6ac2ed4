#include "binding/store_key.h"

#include "binding/errors.h"
#include "core/store/store_key.h"

namespace replpage::binding {

Napi::Value store_key_text(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  try {
    const std::string path = info[0].ToString().Utf8Value();
    return Napi::String::New(env, StoreKey::load(path).text());
  } catch (...) {
    throw to_error(env, std::current_exception());
  }
}

}  // namespace replpage::binding
