// The JavaScript class NativeStandby: the replicas that this node keeps for others.
#pragma once

#include <napi.h>

#include <functional>
#include <memory>
#include <string>

#include "core/peer/standby_host.h"

namespace replpage::binding {

class NativeStandby final : public Napi::ObjectWrap<NativeStandby> {
 public:
  static Napi::Function define(Napi::Env env);
  // (options: NativeStandbyOptions, onEvent: (event) => void)
  explicit NativeStandby(const Napi::CallbackInfo& info);
  ~NativeStandby() override;

 private:
  Napi::Value port(const Napi::CallbackInfo& info);
  Napi::Value renew(const Napi::CallbackInfo& info);
  Napi::Value expect(const Napi::CallbackInfo& info);
  Napi::Value promote(const Napi::CallbackInfo& info);
  Napi::Value drop(const Napi::CallbackInfo& info);
  Napi::Value stop(const Napi::CallbackInfo& info);

  StandbyHost& host(Napi::Env env);
  StandbyEvents events_of(const std::string& token, const std::string& control_socket);
  void emit(const std::string& token, const char* type,
            std::function<void(Napi::Object&)> fill = {});
  void shut_down();
  static void end_with_program(NativeStandby* standby) { standby->shut_down(); }

  Napi::ThreadSafeFunction to_main_;
  Napi::FunctionReference listener_;
  // Null once the object is gone: events may still be on their way to the main thread then.
  const std::shared_ptr<NativeStandby*> self_ = std::make_shared<NativeStandby*>(this);
  std::unique_ptr<StandbyHost> host_;
  bool over_ = false;
  Napi::Env::CleanupHook<void (*)(NativeStandby*), NativeStandby> at_exit_;
};

}  // namespace replpage::binding
