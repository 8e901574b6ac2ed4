#include "binding/restore.h"

#include <functional>
#include <memory>
#include <thread>

#include "binding/errors.h"
#include "binding/group_options.h"
#include "binding/reports.h"
#include "core/capture/restore_session.h"

namespace replpage::binding {
namespace {

using MakeValue = std::function<Napi::Value(Napi::Env)>;

// On a thread of its own: it takes as long as a store takes.
Napi::Value run_apart(Napi::Env env, std::function<MakeValue()> work) {
  auto deferred = std::make_shared<Napi::Promise::Deferred>(env);
  auto to_main = Napi::ThreadSafeFunction::New(
      env, Napi::Function::New(env, [](const Napi::CallbackInfo&) {}), "replpage restore", 0, 1);
  std::thread([deferred, to_main, work = std::move(work)]() mutable {
    MakeValue make_value;
    std::exception_ptr failure;
    try {
      make_value = work();
    } catch (...) {
      failure = std::current_exception();
    }
    to_main.NonBlockingCall([deferred, make_value, failure](Napi::Env main, Napi::Function) {
      const Napi::HandleScope scope(main);
      if (failure) {
        deferred->Reject(to_error(main, failure).Value());
      } else {
        deferred->Resolve(make_value(main));
      }
    });
    to_main.Release();
  }).detach();
  return deferred->Promise();
}

}  // namespace

Napi::Value find_checkpoint(const Napi::CallbackInfo& info) {
  auto place = read_checkpoint_place(info[0].As<Napi::Object>());
  return run_apart(info.Env(), [place = std::move(place)]() -> MakeValue {
    const CheckpointReader reader(place);
    return [id = reader.id(), manifest = reader.manifest()](Napi::Env env) {
      return to_object(env, id, manifest);
    };
  });
}

Napi::Value restore(const Napi::CallbackInfo& info) {
  auto options = read_restore_options(info[0].As<Napi::Object>());
  return run_apart(info.Env(), [options = std::move(options)]() -> MakeValue {
    return [report = restore_checkpoint(options), socket = options.control_socket](Napi::Env env) {
      return to_object(env, report, socket);
    };
  });
}

}  // namespace replpage::binding
