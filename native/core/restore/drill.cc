#include "core/restore/drill.h"

#include <signal.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <time.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "core/base/clock.h"

namespace replpage {
namespace {

constexpr timespec kLook{.tv_sec = 0, .tv_nsec = 200'000};

bool is_own_fault(int signal) {
  return signal == SIGSEGV || signal == SIGILL || signal == SIGBUS || signal == SIGFPE ||
         signal == SIGTRAP || signal == SIGABRT;
}

enum class State : uint8_t { kRuns, kCalled, kStopped, kWrong };

struct Trial {
  pid_t tid = 0;
  State state = State::kRuns;
  std::string problem = {};
};

void go_on(Trial& trial, int signal) {
  if (::ptrace(PTRACE_SYSEMU, trial.tid, nullptr, static_cast<uintptr_t>(signal)) == 0) return;
  trial.state = State::kWrong;
  trial.problem = std::string("cannot be let run: ") + std::strerror(errno);
}

// A stop at a system call has a signal information that no signal has: ptrace(2).
bool is_call(pid_t tid) {
  siginfo_t info{};
  return ::ptrace(PTRACE_GETSIGINFO, tid, nullptr, &info) == 0 &&
         (info.si_code == SIGTRAP || info.si_code == (SIGTRAP | 0x80));
}

void look_at(Trial& trial, int status) {
  if (!WIFSTOPPED(status)) {
    trial.state = State::kWrong;
    trial.problem = "ended";
    return;
  }
  const int signal = WSTOPSIG(status) & 0x7F;
  if (status >> 16 != 0) {
    trial.state = State::kStopped;  // by job control, as the epoch has it
  } else if (signal == SIGTRAP && is_call(trial.tid)) {
    trial.state = State::kCalled;
  } else if (is_own_fault(signal)) {
    siginfo_t info{};
    (void)::ptrace(PTRACE_GETSIGINFO, trial.tid, nullptr, &info);
    trial.state = State::kWrong;
    trial.problem = std::string("got SIG") + sigabbrev_np(signal) + " at address " +
                    std::to_string(reinterpret_cast<uintptr_t>(info.si_addr));
  } else {
    go_on(trial, signal);  // pending in the epoch, or from a timer
  }
}

}  // namespace

std::string why_no_drill(const GroupImage& image) {
  for (const ProcessImage& process : image.processes) {
    for (const MappingImage& mapping : process.mappings) {
      if (mapping.kind == MappingKind::kFileShared && (mapping.prot & PROT_WRITE) != 0) {
        return "it writes to " + mapping.path + " through a mapping, and would do so in a drill";
      }
    }
  }
  return {};
}

GroupImage without_outside(GroupImage image) {
  for (OpenFileImage& file : image.open_files) {
    file.locks.clear();
    if (file.kind == OpenFileKind::kUnixSocket) file.socket.local_address.clear();
    // Who waits for somebody to open it would wake.
    if (file.kind == OpenFileKind::kFifo) file.kind = OpenFileKind::kOutsideStream;
  }
  return image;
}

DrillRun try_out(const std::vector<pid_t>& threads, uint64_t run_us) {
  std::vector<Trial> trials;
  for (const pid_t tid : threads) trials.push_back({.tid = tid});
  for (Trial& trial : trials) go_on(trial, 0);
  const uint64_t ends_us = now_us() + run_us;
  const auto runs = [](const Trial& trial) { return trial.state == State::kRuns; };
  while (std::ranges::any_of(trials, runs) && now_us() < ends_us) {
    for (Trial& trial : trials) {
      int status = 0;
      if (runs(trial) && ::waitpid(trial.tid, &status, __WALL | WNOHANG) == trial.tid) {
        look_at(trial, status);
      }
    }
    ::nanosleep(&kLook, nullptr);
  }
  DrillRun run{.problem = {}, .threads = static_cast<uint32_t>(trials.size()), .calls = 0};
  for (const Trial& trial : trials) {
    if (trial.state == State::kCalled) ++run.calls;
    if (trial.state == State::kWrong && run.problem.empty()) {
      run.problem = "thread " + std::to_string(trial.tid) + " " + trial.problem;
    }
  }
  return run;
}

}  // namespace replpage
