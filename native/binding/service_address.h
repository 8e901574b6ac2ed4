// A service address, for JavaScript: see src/native/service-address.ts.
#pragma once

#include <napi.h>

#include <memory>

namespace replpage::binding {

class NativeServiceAddress : public Napi::ObjectWrap<NativeServiceAddress> {
 public:
  static Napi::Function define(Napi::Env env);
  // new ServiceAddress(text). Throws ERR_BAD_ADDRESS, which says what is wrong with the text.
  explicit NativeServiceAddress(const Napi::CallbackInfo& info);

  // What outlives the object while work is under way.
  struct State;

 private:
  Napi::Value text(const Napi::CallbackInfo& info);
  Napi::Value find(const Napi::CallbackInfo& info);
  Napi::Value take(const Napi::CallbackInfo& info);
  Napi::Value give_up(const Napi::CallbackInfo& info);
  Napi::Value drop(const Napi::CallbackInfo& info);
  Napi::Value lift(const Napi::CallbackInfo& info);

  std::shared_ptr<State> state_;
};

}  // namespace replpage::binding
