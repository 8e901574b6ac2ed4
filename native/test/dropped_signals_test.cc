#include "core/image/dropped_signals.h"

#include <signal.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <memory>

#include "core/base/clock.h"
#include "core/base/sys_error.h"
#include "core/image/kernel_reader.h"
#include "test/test.h"

namespace replpage {
namespace {

// A child that sleeps with SIGRTMIN handled, seized with PTRACE_O_TRACEEXIT.
class Sleeper {
 public:
  Sleeper() {
    pid_ = ::fork();
    if (pid_ == 0) {
      struct sigaction action {};
      action.sa_handler = [](int) {};
      ::sigaction(SIGRTMIN, &action, nullptr);
      for (;;) ::pause();
    }
    ::usleep(20'000);
    ::ptrace(PTRACE_SEIZE, pid_, nullptr, PTRACE_O_TRACEEXIT);
  }
  ~Sleeper() {
    ::kill(pid_, SIGKILL);
    ::ptrace(PTRACE_CONT, pid_, nullptr, nullptr);
    while (::waitpid(pid_, nullptr, __WALL) < 0 && errno == EINTR) {
    }
  }
  Sleeper(const Sleeper&) = delete;
  Sleeper& operator=(const Sleeper&) = delete;

  void queue(int value) const {
    sigval payload{};
    payload.sival_int = value;
    ::sigqueue(pid_, SIGRTMIN, payload);
  }
  // Looked at, not consumed: consuming a stop makes the kernel forget the signal.
  [[nodiscard]] int wait_stop() const {
    siginfo_t stop{};
    ::waitid(P_PID, static_cast<id_t>(pid_), &stop, WSTOPPED | WEXITED | WNOWAIT);
    return stop.si_status;
  }
  [[nodiscard]] pid_t pid() const { return pid_; }

 private:
  pid_t pid_ = -1;
};

int value_of(const SignalInfo& info) {
  siginfo_t whole{};
  std::memcpy(&whole, info.data(), sizeof whole);
  return whole.si_signo == SIGRTMIN ? whole.si_value.sival_int : -1;
}

ProcessImage image_of(pid_t pid) {
  ProcessImage image;
  image.threads.resize(1);
  image.threads[0].host_tid = pid;
  image.threads[0].registers.orig_rax = SYS_pause;
  return image;
}

std::unique_ptr<const DroppedSignals> watch() {
  try {
    return std::make_unique<const DroppedSignals>(BtfTypes::load());
  } catch (const SysError& error) {
    throw testing::Skipped(error.what());
  }
}

TEST(a_signal_that_a_killed_thread_stood_at_is_first_and_later_ones_are_last) {
  const auto dropped = watch();
  const uint64_t since = now_ns();
  const Sleeper child;
  child.queue(1);
  CHECK_EQUAL(child.wait_stop(), SIGRTMIN);
  ::kill(child.pid(), SIGKILL);
  while (child.wait_stop() != (SIGTRAP | (PTRACE_EVENT_EXIT << 8))) {
  }
  child.queue(3);
  ProcessImage image = image_of(child.pid());
  SignalInfo queued{};
  siginfo_t second{};
  second.si_signo = SIGRTMIN;
  second.si_value.sival_int = 2;
  std::memcpy(queued.data(), &second, sizeof second);
  image.pending.push_back(queued);
  dropped->restore(child.pid(), since, image);
  CHECK_EQUAL(image.pending.size(), 3u);
  for (size_t i = 0; i < image.pending.size(); ++i) {
    CHECK_EQUAL(value_of(image.pending[i]), static_cast<int>(i) + 1);
  }
  CHECK(image.threads[0].pending.empty());
}

// Debian's 6.1 and 6.12 have no bpf_task_from_pid for such programs, but tracepoints.
TEST(dropped_signals_are_watched_where_other_memory_of_the_kernel_is_not_read) {
  watch();
  ::setenv("REPLPAGE_KERNEL_READER", "off", 1);
  CHECK(KernelReader::instance() == nullptr);
  CHECK(KernelReader::dropped_signals() != nullptr);
}

TEST(signals_of_living_processes_and_older_ones_are_not_noted) {
  const auto dropped = watch();
  const uint64_t since = now_ns();
  const Sleeper child;
  ::kill(child.pid(), SIGCHLD);  // ignored, since nobody handles it
  ProcessImage image = image_of(child.pid());
  dropped->restore(child.pid(), since, image);
  CHECK(image.pending.empty());
  ::kill(child.pid(), SIGKILL);
  child.queue(1);
  dropped->restore(child.pid(), now_ns(), image);
  CHECK(image.pending.empty());
}

}  // namespace
}  // namespace replpage
