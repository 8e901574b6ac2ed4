// A forked process with known kernel state, stopped by a tracer thread of its own tree.
#pragma once

#include <sys/types.h>

#include <functional>
#include <memory>
#include <optional>

#include "core/image/process_capture.h"
#include "core/trace/trace_tree.h"

namespace replpage::testing {

// Forks; the child runs `body`, which must announce that it is ready and then never return.
class StateVictim : private TraceObserver {
 public:
  using Body = std::function<void(const std::function<void()>& ready)>;
  explicit StateVictim(const Body& body);
  ~StateVictim() override;
  StateVictim(const StateVictim&) = delete;
  StateVictim& operator=(const StateVictim&) = delete;

  [[nodiscard]] pid_t pid() const { return pid_; }
  [[nodiscard]] TraceTree& tree() { return *tree_; }
  [[nodiscard]] Inject inject();

  // Attaches to what is not attached yet and stops it.
  void stop();
  void go_on() { tree_->thaw(); }
  // Whether captures may read hidden state from the kernel.
  void set_kernel_reader(bool allowed) { kernel_reader_ = allowed; }

  // Stopped: the whole process. Throws std::runtime_error when it is gone.
  ProcessImage capture(bool with_injection, const ProcessImage* previous = nullptr,
                       bool slow_state = true);

 private:
  void on_new_process(const TracedProcess&) override {}
  void on_new_thread(const TracedThread&) override {}
  void on_exec(const TracedProcess&) override {}
  ExitDecision on_exit_stop(const TracedProcess&, const TracedThread&) override {
    return ExitDecision::kRelease;
  }
  void on_process_gone(pid_t, int) override {}

  pid_t pid_ = -1;
  bool kernel_reader_ = true;
  std::unique_ptr<TraceTree> tree_;
};

}  // namespace replpage::testing
