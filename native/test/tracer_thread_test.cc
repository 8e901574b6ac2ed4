// The thread that traces a group, without one: how it begins and ends.

#include "core/group/tracer_thread.h"

#include "test/test.h"

using namespace replpage;           // NOLINT
using namespace replpage::testing;  // NOLINT

namespace {

class Nobody final : public TracerThread::Owner {
 public:
  [[nodiscard]] uint64_t due_us() const override { return 0; }
  void after_events() override {}
  void on_trouble(const std::string& what) override { fail(__FILE__, __LINE__, what); }
  void on_new_process(const TracedProcess& /*child*/) override {}
  void on_new_thread(const TracedThread& /*thread*/) override {}
  void on_exec(const TracedProcess& /*process*/) override {}
  ExitDecision on_exit_stop(const TracedProcess& /*process*/,
                            const TracedThread& /*thread*/) override {
    return ExitDecision::kRelease;
  }
  void on_process_gone(pid_t /*pid*/, int /*wait_status*/) override {}
};

}  // namespace

// Whoever ends the thread wakes it as well: with the thread sanitizer this finds a tree that is
// gone by then.
TEST(a_tracer_thread_ends_while_it_is_woken) {
  for (int round = 0; round < 200; ++round) {
    Nobody owner;
    TracerThread tracer(owner);
    tracer.call([](TraceTree& tree) { tree.detach(); });
  }
}
