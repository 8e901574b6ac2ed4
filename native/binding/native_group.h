// The JavaScript class NativeGroup: one GroupSession with its worker thread.
#pragma once

#include <napi.h>

#include <functional>
#include <memory>
#include <thread>

#include "core/base/job_queue.h"
#include "core/session/group_session.h"

namespace replpage::binding {

class NativeGroup final : public Napi::ObjectWrap<NativeGroup>, private GroupEvents {
 public:
  static Napi::Function define(Napi::Env env);
  // (options: NativeGroupOptions, onEvent: (event) => void)
  explicit NativeGroup(const Napi::CallbackInfo& info);
  ~NativeGroup() override;

 private:
  using MakeValue = std::function<Napi::Value(Napi::Env)>;

  Napi::Value start(const Napi::CallbackInfo& info);
  Napi::Value epoch(const Napi::CallbackInfo& info);
  Napi::Value page(const Napi::CallbackInfo& info);
  Napi::Value inspect(const Napi::CallbackInfo& info);
  Napi::Value checkpoint(const Napi::CallbackInfo& info);
  Napi::Value promote(const Napi::CallbackInfo& info);
  Napi::Value join(const Napi::CallbackInfo& info);
  Napi::Value drill(const Napi::CallbackInfo& info);
  Napi::Value leave_out(const Napi::CallbackInfo& info);
  Napi::Value recorded(const Napi::CallbackInfo& info);
  Napi::Value stop(const Napi::CallbackInfo& info);
  Napi::Value counters(const Napi::CallbackInfo& info);
  Napi::Value parts(const Napi::CallbackInfo& info);

  // Runs `work` on the worker thread; what it returns makes the promise's value on the main thread.
  Napi::Value run(Napi::Env env, std::function<MakeValue(GroupSession&)> work);
  // Ends the threads; nothing comes from them afterwards.
  void shut_down();
  static void end_with_program(NativeGroup* group);
  void emit(std::function<Napi::Object(Napi::Env)> make_event);

  void on_progress(uint64_t bytes, uint64_t bytes_total) override;
  void on_died(DeathCause cause, int signal, int status) override;
  void on_promoted(const PromotionReport& report) override;
  void on_drained(uint64_t pages, uint64_t took_us) override;
  void on_ended(const std::string& reason, int signal, int status) override;
  void on_unprotected(const std::string& reason) override;
  void on_replica_out(const std::string& node, const std::string& why) override;
  void on_drilled(const std::string& node, uint64_t epoch, uint64_t compared,
                  const DrilledMessage& message) override;
  void on_replica_in_sync(const std::string& node, uint64_t epoch) override;

  std::string control_socket_;
  Napi::ThreadSafeFunction to_main_;
  Napi::FunctionReference listener_;
  // Null once the object is gone: events may still be on their way to the main thread then.
  const std::shared_ptr<NativeGroup*> self_ = std::make_shared<NativeGroup*>(this);
  JobQueue jobs_;
  std::unique_ptr<GroupSession> session_;
  std::thread worker_;
  Napi::Env::CleanupHook<void (*)(NativeGroup*), NativeGroup> at_exit_;
};

}  // namespace replpage::binding
