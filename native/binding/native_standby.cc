#include "binding/native_standby.h"

#include "binding/errors.h"
#include "binding/group_options.h"

namespace replpage::binding {

Napi::Function NativeStandby::define(Napi::Env env) {
  return DefineClass(
      env, "NativeStandby",
      {InstanceMethod<&NativeStandby::port>("port"), InstanceMethod<&NativeStandby::renew>("renew"),
       InstanceMethod<&NativeStandby::expect>("expect"),
       InstanceMethod<&NativeStandby::promote>("promote"),
       InstanceMethod<&NativeStandby::drop>("drop"), InstanceMethod<&NativeStandby::stop>("stop")});
}

NativeStandby::NativeStandby(const Napi::CallbackInfo& info)
    : Napi::ObjectWrap<NativeStandby>(info) {
  const Napi::Env env = info.Env();
  if (info.Length() != 2 || !info[0].IsObject() || !info[1].IsFunction()) {
    throw Napi::TypeError::New(env, "NativeStandby takes options and a listener");
  }
  const auto options = info[0].As<Napi::Object>();
  try {
    host_ = std::make_unique<StandbyHost>(StandbyHostOptions{
        .host = options.Get("host").ToString().Utf8Value(),
        .port = static_cast<uint16_t>(options.Get("port").ToNumber().Uint32Value()),
        .credentials = read_credentials(options.Get("credentials").As<Napi::Object>())});
  } catch (const Napi::Error&) {
    throw;
  } catch (...) {
    throw to_error(env, std::current_exception());
  }
  listener_ = Napi::Persistent(info[1].As<Napi::Function>());
  to_main_ = Napi::ThreadSafeFunction::New(
      env, Napi::Function::New(env, [](const Napi::CallbackInfo&) {}), "replpage standby", 0, 1);
  // Replicas that stand by do not keep the event loop alive; the daemon's server does.
  to_main_.Unref(env);
  at_exit_ = info.Env().AddCleanupHook(&NativeStandby::end_with_program, this);
}

NativeStandby::~NativeStandby() {
  if (!over_ && !at_exit_.IsEmpty()) at_exit_.Remove(Env());
  shut_down();
  *self_ = nullptr;
}

void NativeStandby::shut_down() {
  if (over_) return;
  over_ = true;
  host_.reset();
  to_main_.Release();
}

StandbyHost& NativeStandby::host(Napi::Env env) {
  if (!host_) throw Napi::Error::New(env, "the node keeps no replicas any more");
  return *host_;
}

Napi::Value NativeStandby::port(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), host(info.Env()).port());
}

Napi::Value NativeStandby::renew(const Napi::CallbackInfo& info) {
  const NodeCredentials credentials = read_credentials(info[0].As<Napi::Object>());
  try {
    host(info.Env()).renew(credentials);
  } catch (const PeerError&) {
    throw to_error(info.Env(), std::current_exception());
  }
  return info.Env().Undefined();
}

Napi::Value NativeStandby::expect(const Napi::CallbackInfo& info) {
  const auto object = info[0].As<Napi::Object>();
  StandbyOptions options = read_standby_options(object);
  std::string token = object.Get("token").ToString().Utf8Value();
  StandbyEvents events = events_of(token, options.control_socket);
  host(info.Env())
      .expect({.token = std::move(token),
               .node = object.Get("node").ToString().Utf8Value(),
               .options = std::move(options),
               .events = std::move(events)});
  return info.Env().Undefined();
}

Napi::Value NativeStandby::promote(const Napi::CallbackInfo& info) {
  const std::string token = info[0].ToString().Utf8Value();
  const bool keep_files = info[1].ToBoolean().Value();
  return Napi::Boolean::New(info.Env(), host(info.Env()).promote(token, keep_files));
}

Napi::Value NativeStandby::drop(const Napi::CallbackInfo& info) {
  if (host_) host_->drop(info[0].ToString().Utf8Value());
  return info.Env().Undefined();
}

// Waits for the sessions' threads, which are told to end: some milliseconds.
Napi::Value NativeStandby::stop(const Napi::CallbackInfo& info) {
  host_.reset();
  return info.Env().Undefined();
}

StandbyEvents NativeStandby::events_of(const std::string& token,
                                       const std::string& control_socket) {
  return {.opened =
              [this, token](const std::vector<std::string>& made) {
                emit(token, "opened", [made](Napi::Object& event) {
                  Napi::Array paths = Napi::Array::New(event.Env(), made.size());
                  for (uint32_t i = 0; i < made.size(); ++i) paths.Set(i, made[i]);
                  event.Set("made", paths);
                });
              },
          .committed =
              [this, token](const CommittedMessage& message) {
                emit(token, "committed", [message](Napi::Object& event) {
                  event.Set("epoch", static_cast<double>(message.epoch));
                  event.Set("residentBytes", static_cast<double>(message.resident_bytes));
                });
              },
          .cut_off =
              [this, token](const std::string& why) {
                emit(token, "cutOff", [why](Napi::Object& event) { event.Set("why", why); });
              },
          .promoted =
              [this, token, control_socket](const PromotedMessage& message, bool ordered) {
                emit(token, "promoted", [=](Napi::Object& event) {
                  event.Set("epoch", static_cast<double>(message.epoch));
                  event.Set("pid", message.pid);
                  event.Set("hostPid", message.host_pid);
                  event.Set("promoteUs", static_cast<double>(message.promote_us));
                  event.Set("ordered", ordered);
                  event.Set("keeperSocket", control_socket);
                });
              },
          .drained = [this, token](const DrainedMessage&) { emit(token, "drained"); },
          .lost =
              [this, token](const std::string& why) {
                emit(token, "lost", [why](Napi::Object& event) { event.Set("why", why); });
              }};
}

void NativeStandby::emit(const std::string& token, const char* type,
                         std::function<void(Napi::Object&)> fill) {
  to_main_.NonBlockingCall([self = self_, token, type = std::string(type), fill = std::move(fill)](
                               Napi::Env env, Napi::Function) {
    if (*self == nullptr) return;
    const Napi::HandleScope scope(env);
    Napi::Object event = Napi::Object::New(env);
    event.Set("type", type);
    event.Set("token", token);
    if (fill) fill(event);
    (*self)->listener_.Call({event});
  });
}

}  // namespace replpage::binding
