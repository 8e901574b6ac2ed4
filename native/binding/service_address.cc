#include "binding/service_address.h"

#include <mutex>
#include <optional>

#include "binding/run_apart.h"
#include "core/address/announcement.h"
#include "core/address/interface_address.h"
#include "core/address/service_address.h"
#include "core/address/traffic_drop.h"

namespace replpage::binding {

struct NativeServiceAddress::State {
  ServiceAddress address;
  // One piece of work at a time: none takes longer than the kernel does.
  std::mutex mutex;
  std::optional<AddressAnnouncer> announcer;
  std::optional<TrafficDrop> dropped;
};

namespace {

MakeValue nothing() {
  return [](Napi::Env env) { return env.Undefined(); };
}

MakeValue boolean(bool value) {
  return [value](Napi::Env env) { return Napi::Boolean::New(env, value); };
}

Napi::Value under_lock(Napi::Env env, const std::shared_ptr<NativeServiceAddress::State>& state,
                       MakeValue (*work)(NativeServiceAddress::State&)) {
  return run_apart(env, [state, work] {
    const std::lock_guard lock(state->mutex);
    return work(*state);
  });
}

}  // namespace

Napi::Function NativeServiceAddress::define(Napi::Env env) {
  using Self = NativeServiceAddress;
  return DefineClass(env, "ServiceAddress",
                     {InstanceAccessor<&Self::text>("text"), InstanceMethod<&Self::find>("find"),
                      InstanceMethod<&Self::take>("take"), InstanceMethod<&Self::give_up>("giveUp"),
                      InstanceMethod<&Self::drop>("drop"), InstanceMethod<&Self::lift>("lift")});
}

NativeServiceAddress::NativeServiceAddress(const Napi::CallbackInfo& info)
    : Napi::ObjectWrap<NativeServiceAddress>(info), state_(std::make_shared<State>()) {
  try {
    state_->address = parse_service_address(info[0].ToString().Utf8Value());
  } catch (const BadServiceAddress& bad) {
    Napi::Error error = Napi::Error::New(info.Env(), bad.what());
    error.Set("code", Napi::String::New(info.Env(), "ERR_BAD_ADDRESS"));
    throw error;
  }
}

Napi::Value NativeServiceAddress::text(const Napi::CallbackInfo& info) {
  return Napi::String::New(info.Env(), state_->address.text());
}

Napi::Value NativeServiceAddress::find(const Napi::CallbackInfo& info) {
  return under_lock(info.Env(), state_, [](State& state) -> MakeValue {
    const auto found = find_address(state.address);
    return [found](Napi::Env env) -> Napi::Value {
      if (!found) return env.Undefined();
      Napi::Object object = Napi::Object::New(env);
      object.Set("ours", found->ours);
      object.Set("where", found->where);
      return object;
    };
  });
}

Napi::Value NativeServiceAddress::take(const Napi::CallbackInfo& info) {
  return under_lock(info.Env(), state_, [](State& state) {
    const bool is_new = take_address(state.address);
    state.announcer.emplace(state.address);
    return boolean(is_new);
  });
}

Napi::Value NativeServiceAddress::give_up(const Napi::CallbackInfo& info) {
  return under_lock(info.Env(), state_, [](State& state) {
    state.announcer.reset();
    return boolean(give_up_address(state.address));
  });
}

Napi::Value NativeServiceAddress::drop(const Napi::CallbackInfo& info) {
  return under_lock(info.Env(), state_, [](State& state) {
    if (!state.dropped) state.dropped.emplace(state.address);
    return nothing();
  });
}

Napi::Value NativeServiceAddress::lift(const Napi::CallbackInfo& info) {
  return under_lock(info.Env(), state_, [](State& state) {
    state.dropped.reset();
    return nothing();
  });
}

}  // namespace replpage::binding
