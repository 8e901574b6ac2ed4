#include "core/group/tracer_thread.h"

#include <pthread.h>

#include <ctime>
#include <exception>

#include "core/base/clock.h"
#include "core/base/urgency.h"

namespace replpage {

TracerThread::TracerThread(Owner& owner)
    : owner_(owner), tree_(owner), jobs_([this] { tree_.wake(); }), thread_([this] { run(); }) {}

TracerThread::~TracerThread() {
  quit_ = true;
  jobs_.post([] {});
  thread_.join();
}

void TracerThread::run() {
  // Every signal of the primary waits for this thread, and a process that dies must not get to its
  // exit stop between two calls of it (ptrace_resume()).
  run_before_others();
  while (!quit_) {
    try {
      turn();
    } catch (const std::exception& error) {
      owner_.on_trouble(std::string("tracing failed: ") + error.what());
    }
  }
  tree_.detach();
}

void TracerThread::turn() {
  const uint64_t due_us = owner_.due_us();
  if (tree_.processes().empty() && due_us == 0) {
    jobs_.wait();
  } else {
    tree_.wait_events(due_us * 1000);
  }
  jobs_.run_pending();
  {
    const std::lock_guard lock(counters_mutex_);
    counters_ = tree_.counters();
  }
  owner_.after_events();
}

TraceCounters TracerThread::counters() {
  const std::lock_guard lock(counters_mutex_);
  return counters_;
}

uint64_t TracerThread::cpu_us() {
  clockid_t clock = 0;
  if (pthread_getcpuclockid(thread_.native_handle(), &clock) != 0) return 0;
  return clock_us(clock);
}

}  // namespace replpage
