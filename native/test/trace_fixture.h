// Victims, tracers and what they share, for the tests of trace/.
#pragma once

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <functional>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "core/base/clock.h"
#include "core/base/procfs.h"
#include "core/base/sys_error.h"
#include "core/base/unique_fd.h"
#include "core/trace/trace_tree.h"
#include "test/test.h"

namespace replpage::testing {

inline constexpr uint64_t kMs = 1'000'000;

// Memory that test, victim and tracer processes share.
struct Board {
  std::atomic<uint64_t> ready{0}, stop{0}, count{0}, errors{0}, value{0};
  std::atomic<uint64_t> slots[512];
  uint64_t order_next[64];
};

struct SharedBoard {
  SharedBoard() {
    void* at =
        ::mmap(nullptr, sizeof(Board), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    board = new (at) Board();
  }
  ~SharedBoard() { ::munmap(board, sizeof(Board)); }
  Board* operator->() const { return board; }
  Board* board;
};

inline bool wait_until(const std::function<bool()>& condition, uint64_t timeout_ms = 10'000) {
  const uint64_t end = now_ns() + timeout_ms * kMs;
  while (!condition()) {
    if (now_ns() > end) return false;
    std::this_thread::sleep_for(std::chrono::microseconds(200));
  }
  return true;
}

// A process whose parent is neither the test nor the tracer.
class Victim {
 public:
  explicit Victim(const std::function<void()>& body) {
    int fds[2];
    CHECK(::pipe2(fds, O_CLOEXEC) == 0);
    reader_ = UniqueFd(fds[0]);
    UniqueFd writer(fds[1]);
    parent_ = ::fork();
    if (parent_ == 0) {
      pid = ::fork();
      if (pid == 0) {
        body();
        ::_exit(0);
      }
      (void)!::write(writer.get(), &pid, sizeof pid);
      int status = 0;
      ::waitpid(pid, &status, 0);
      (void)!::write(writer.get(), &status, sizeof status);
      ::_exit(0);
    }
    CHECK(::read(reader_.get(), &pid, sizeof pid) == sizeof pid);
  }
  ~Victim() {
    if (!ended_) ::kill(pid, SIGKILL);
    ::waitpid(parent_, nullptr, 0);
  }
  // The status that the real parent sees, or -1 when it does not end in time.
  int wait_end(int timeout_ms = 10'000) {
    pollfd poll{.fd = reader_.get(), .events = POLLIN, .revents = 0};
    if (::poll(&poll, 1, timeout_ms) != 1) return -1;
    int status = -1;
    if (::read(reader_.get(), &status, sizeof status) != sizeof status) return -1;
    ended_ = true;
    return status;
  }
  pid_t pid = 0;

 private:
  pid_t parent_ = 0;
  UniqueFd reader_;
  bool ended_ = false;
};

class Recorder : public TraceObserver {
 public:
  void on_new_process(const TracedProcess&) override { ++new_processes; }
  void on_new_thread(const TracedThread&) override { ++new_threads; }
  void on_exec(const TracedProcess&) override { ++executions; }
  ExitDecision on_exit_stop(const TracedProcess& process, const TracedThread& thread) override {
    ++exit_stops;
    const bool killed = (thread.exit_code & 0x7f) == SIGKILL;
    const bool of_root = process.parent == 0;
    return hold_killed && killed && (of_root || hold_children) ? ExitDecision::kHold
                                                               : ExitDecision::kRelease;
  }
  void on_process_gone(pid_t pid, int wait_status) override { gone[pid] = wait_status; }

  int new_processes = 0, new_threads = 0, executions = 0, exit_stops = 0;
  bool hold_killed = false;  // of the root; with hold_children of all
  bool hold_children = false;
  std::map<pid_t, int> gone;
};

inline void handle_for(TraceTree& tree, uint64_t ms) { tree.wait_events(now_ns() + ms * kMs); }

// Handles events until the condition holds. For what must come about, however busy the machine is.
inline bool handle_until(TraceTree& tree, const std::function<bool()>& condition,
                         uint64_t timeout_ms = 10'000) {
  const uint64_t end = now_ns() + timeout_ms * kMs;
  while (!condition()) {
    if (now_ns() > end) return false;
    handle_for(tree, 1);
  }
  return true;
}

// Runs the tracer in a process of its own, which may be killed at any moment.
class TracerProcess {
 public:
  explicit TracerProcess(const std::function<void()>& body) {
    pid = ::fork();
    if (pid == 0) {
      try {
        body();
      } catch (const std::exception& error) {
        note(std::string("tracer: ") + error.what());
        ::_exit(1);
      }
      ::_exit(0);
    }
  }
  ~TracerProcess() { kill(); }
  void kill() {
    if (pid <= 0) return;
    ::kill(pid, SIGKILL);
    ::waitpid(pid, nullptr, 0);
    pid = 0;
  }
  int wait_end() {
    int status = 0;
    ::waitpid(pid, &status, 0);
    pid = 0;
    return status;
  }
  pid_t pid = 0;
};

inline void sleep_forever() {
  for (;;) ::pause();
}

inline void start_threads(int count, const std::function<void(int)>& body) {
  for (int i = 0; i < count; ++i) std::thread(body, i).detach();
}

inline std::string state_of(pid_t pid) {
  const auto status = read_proc("/proc/" + std::to_string(pid) + "/status");
  return status ? std::string(field_of(*status, "State").value_or("?")) : "gone";
}

inline uint64_t median(std::vector<uint64_t> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

}  // namespace replpage::testing
