#include "core/trace/stop_follower.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <exception>
#include <string>
#include <thread>

#include "core/base/clock.h"
#include "core/base/procfs.h"
#include "core/base/sys_error.h"
#include "core/base/unique_fd.h"
#include "core/base/urgency.h"

namespace replpage {
namespace {

// Looking where a thread runs takes about 15 us, so it is done once for so many stops, and only
// when they came within this time.
constexpr uint32_t kStopsPerLook = 8;
constexpr uint64_t kQuickNs = 40'000'000;

// Fields of /proc/PID/stat from the state on, as proc(5) counts them.
constexpr int kStateField = 3;
constexpr int kProcessorField = 39;

// On which processor it ran last, or -1.
int processor_of(pid_t pid, pid_t tid) {
  const auto stat =
      read_proc("/proc/" + std::to_string(pid) + "/task/" + std::to_string(tid) + "/stat");
  if (!stat) return -1;
  size_t at = stat->rfind(')');
  if (at == std::string::npos) return -1;
  at += 2;
  for (int field = kStateField; field < kProcessorField; ++field) {
    at = stat->find(' ', at);
    if (at == std::string::npos) return -1;
    ++at;
  }
  return std::atoi(stat->c_str() + at);
}

cpu_set_t only(int cpu) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(static_cast<size_t>(cpu), &set);
  return set;
}

// The one other processor of the machine, or -1: among several the scheduler finds another one.
int other_processor(const cpu_set_t& usual, int cpu) {
  if (::sysconf(_SC_NPROCESSORS_ONLN) != 2 || CPU_COUNT(&usual) != 2) return -1;
  for (int other = 0; other < CPU_SETSIZE; ++other) {
    if (other != cpu && CPU_ISSET(static_cast<size_t>(other), &usual)) return other;
  }
  return -1;
}

}  // namespace

// Does nothing, on the processor that the tracer is not on.
class StopFollower::Decoy {
 public:
  Decoy() : calls_(::eventfd(0, EFD_CLOEXEC)) {
    if (!calls_.valid()) throw SysError::from_errno("eventfd");
    thread_ = std::thread([this] { run(); });
  }
  ~Decoy() {
    quit_ = true;
    call();
    thread_.join();
  }
  Decoy(const Decoy&) = delete;
  Decoy& operator=(const Decoy&) = delete;

  void move(int cpu) noexcept {
    const cpu_set_t set = only(cpu);
    (void)::pthread_setaffinity_np(thread_.native_handle(), sizeof set, &set);
  }
  void call() noexcept { (void)::eventfd_write(calls_.get(), 1); }

 private:
  void run() {
    run_after_others();
    eventfd_t calls = 0;
    while (!quit_) (void)::eventfd_read(calls_.get(), &calls);
  }

  UniqueFd calls_;
  std::atomic<bool> quit_ = false;
  std::thread thread_;
};

StopFollower::StopFollower() = default;

StopFollower::~StopFollower() = default;

void StopFollower::note_signal(pid_t pid, pid_t tid) {
  if (++stops_ < kStopsPerLook) return;
  stops_ = 0;
  const uint64_t now = now_ns();
  const bool quick = now - since_ns_ < kQuickNs;
  since_ns_ = now;
  if (!quick) return leave();
  try {
    follow(pid, tid);
  } catch (const std::exception&) {  // slower, nothing else
    leave();
  }
}

void StopFollower::follow(pid_t pid, pid_t tid) {
  const int cpu = processor_of(pid, tid);
  if (cpu < 0 || cpu >= CPU_SETSIZE || cpu == cpu_) return;
  if (cpu_ < 0 && ::sched_getaffinity(0, sizeof usual_, &usual_) != 0) return;
  if (!CPU_ISSET(static_cast<size_t>(cpu), &usual_)) return leave();
  const cpu_set_t set = only(cpu);
  if (::sched_setaffinity(0, sizeof set, &set) != 0) return leave();
  cpu_ = cpu;
  const int other = other_processor(usual_, cpu);
  if (other < 0) return;
  if (!decoy_) decoy_ = std::make_unique<Decoy>();
  decoy_->move(other);
}

void StopFollower::keep_thread_here() noexcept {
  if (cpu_ >= 0 && decoy_) decoy_->call();
}

void StopFollower::leave() noexcept {
  if (cpu_ < 0) return;
  (void)::sched_setaffinity(0, sizeof usual_, &usual_);
  cpu_ = -1;
}

}  // namespace replpage
