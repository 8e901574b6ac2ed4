#include "binding/run_apart.h"

#include <exception>
#include <thread>
#include <utility>

#include "binding/errors.h"

namespace replpage::binding {
namespace {

using Work = std::function<MakeValue(const std::stop_token&)>;

// One thread with its work; gone by itself when the promise is settled.
class Apart {
 public:
  Apart(Napi::Env env, Work work, bool keeps_program)
      : deferred_(env),
        to_main_(Napi::ThreadSafeFunction::New(
            env, Napi::Function::New(env, [](const Napi::CallbackInfo&) {}), "replpage work", 0,
            1)),
        // Before the thread-safe function is freed: see NativeGroup.
        at_exit_(env.AddCleanupHook(&Apart::end_with_program, this)) {
    if (!keeps_program) to_main_.Unref(env);
    thread_ = std::jthread(
        [this, work = std::move(work)](const std::stop_token& stop) { do_it(work, stop); });
  }
  Apart(const Apart&) = delete;
  Apart& operator=(const Apart&) = delete;

  [[nodiscard]] Napi::Value promise() const { return deferred_.Promise(); }

 private:
  ~Apart() {
    thread_.request_stop();
    if (thread_.joinable()) thread_.join();
    to_main_.Release();
  }

  static void end_with_program(Apart* apart) { delete apart; }

  void do_it(const Work& work, const std::stop_token& stop) {
    MakeValue make_value;
    std::exception_ptr failure;
    try {
      make_value = work(stop);
    } catch (...) {
      failure = std::current_exception();
    }
    to_main_.NonBlockingCall([this, make_value, failure](Napi::Env main, Napi::Function) {
      settle(main, make_value, failure);
    });
  }

  void settle(Napi::Env main, const MakeValue& make_value, const std::exception_ptr& failure) {
    const Napi::HandleScope scope(main);
    at_exit_.Remove(main);
    if (failure) {
      deferred_.Reject(to_error(main, failure).Value());
    } else {
      deferred_.Resolve(make_value(main));
    }
    delete this;
  }

  Napi::Promise::Deferred deferred_;
  Napi::ThreadSafeFunction to_main_;
  Napi::Env::CleanupHook<void (*)(Apart*), Apart> at_exit_;
  std::jthread thread_;
};

}  // namespace

// Apart ends itself: nobody else keeps it.
Napi::Value run_apart(Napi::Env env, std::function<MakeValue()> work) {
  auto* apart = new Apart(
      env, [work = std::move(work)](const std::stop_token&) { return work(); }, true);
  return apart->promise();
}

Napi::Value run_apart(Napi::Env env, std::function<MakeValue(const std::stop_token&)> work) {
  auto* apart = new Apart(env, std::move(work), false);
  return apart->promise();
}

}  // namespace replpage::binding
