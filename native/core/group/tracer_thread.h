// The one thread that traces a group. It waits for nobody but its tracees and runs what other
// threads ask of it in between.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <string>
#include <thread>
#include <utility>

#include "core/base/job_queue.h"
#include "core/trace/trace_tree.h"

namespace replpage {

class TracerThread {
 public:
  // Told on the tracer thread.
  class Owner : public TraceObserver {
   public:
    // When after_events() is wanted at the latest, in microseconds as now_us(); 0: no such time.
    [[nodiscard]] virtual uint64_t due_us() const = 0;
    // Stops were handled, jobs were run, or the time is due.
    virtual void after_events() = 0;
    // Tracing, a job or the owner itself threw. The thread goes on: one group's trouble must not
    // end the daemon.
    virtual void on_trouble(const std::string& what) = 0;
  };

  explicit TracerThread(Owner& owner);
  // Detaches from everything.
  ~TracerThread();
  TracerThread(const TracerThread&) = delete;
  TracerThread& operator=(const TracerThread&) = delete;

  // Runs `work(tree)` on the tracer thread and waits for it; its exception comes back.
  template <class Work>
  auto call(Work work) {
    return jobs_.call([this, work = std::move(work)]() mutable { return work(tree_); });
  }
  // The same without waiting.
  void post(JobQueue::Job job) { jobs_.post(std::move(job)); }

  // As they were after the last stop; does not wait for the thread.
  [[nodiscard]] TraceCounters counters();
  // CPU time that the thread has used, in microseconds.
  [[nodiscard]] uint64_t cpu_us();

 private:
  void run();
  void turn();

  Owner& owner_;
  TraceTree tree_;  // outlives the thread: whoever posts a job wakes it
  std::atomic<bool> quit_ = false;
  std::mutex counters_mutex_;
  TraceCounters counters_;
  JobQueue jobs_;
  std::thread thread_;
};

}  // namespace replpage
