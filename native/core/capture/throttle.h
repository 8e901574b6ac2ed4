// Slows the primary down while its memory is copied, where it writes faster than that: it stands
// still for most of the time, never longer than a pause may be, and whatever becomes of the copy.
// Live migration of virtual machines calls this auto-converge.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>

#include "core/group/group_context.h"
#include "core/group/group_freezer.h"
#include "core/group/tracer_thread.h"

namespace replpage {

class Throttle {
 public:
  // From now on, for some seconds at most. `stop_us`: for so long at a time; it runs for a quarter
  // of that in between.
  Throttle(GroupContext& context, GroupFreezer& freezer, TracerThread& tracer, uint64_t stop_us);
  // Lets it run. Does not wait for the tracer thread, which may wait for the caller.
  ~Throttle();
  Throttle(const Throttle&) = delete;
  Throttle& operator=(const Throttle&) = delete;

  // How long the primary stood still so far.
  [[nodiscard]] uint64_t stood_us() const { return shared_->stood_us; }

 private:
  // Also of the job that is with the tracer thread when we are gone.
  struct Shared {
    std::mutex mutex;
    std::condition_variable changed;
    bool over = false;
    bool stopping = false;  // a job is on its way
    std::atomic<uint64_t> stood_us = 0;
  };
  void run(GroupContext& context, GroupFreezer& freezer, TracerThread& tracer, uint64_t stop_us);

  const std::shared_ptr<Shared> shared_ = std::make_shared<Shared>();
  std::thread thread_;
};

}  // namespace replpage
