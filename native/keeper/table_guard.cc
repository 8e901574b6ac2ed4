#include "keeper/table_guard.h"

#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <vector>

#include "core/base/procfs.h"

namespace replpage {
namespace {

// Of the highest numbers one is free: programs take them from below.
constexpr int kNumbersTried = 8;

// Only system calls: other threads of the keeper may have held any lock.
[[noreturn]] void guard() {
  (void)::prctl(PR_SET_NAME, "replpage-table");
  sigset_t all;
  ::sigfillset(&all);
  (void)::syscall(SYS_rt_sigprocmask, SIG_SETMASK, &all, nullptr, sizeof(uint64_t));
  for (;;) (void)::syscall(SYS_ppoll, nullptr, 0, nullptr, nullptr, sizeof(uint64_t));
}

pid_t clone_with(pid_t number) {
  clone_args arguments{};
  arguments.flags = CLONE_FILES;
  arguments.exit_signal = SIGCHLD;
  arguments.set_tid = reinterpret_cast<uint64_t>(&number);
  arguments.set_tid_size = number != 0 ? 1 : 0;
  return static_cast<pid_t>(::syscall(SYS_clone3, &arguments, sizeof arguments));
}

}  // namespace

pid_t start_table_guard() noexcept {
  try {
    const auto limit = read_proc("/proc/sys/kernel/pid_max");
    const int highest = limit ? std::atoi(limit->c_str()) - 1 : 0;
    for (int tried = 0; highest > 0 && tried < kNumbersTried; ++tried) {
      const pid_t pid = clone_with(highest - tried);
      if (pid == 0) guard();
      if (pid > 0) return pid;
    }
  } catch (const std::exception&) {  // no memory
  }
  return 0;
}

bool is_alone_with(pid_t guard) {
  const std::vector<int> pids = numeric_entries("/proc").value_or(std::vector<int>{guard + 1});
  return std::all_of(pids.begin(), pids.end(),
                     [guard](int pid) { return pid == ::getpid() || pid == guard; });
}

}  // namespace replpage
