// Threads that handle the crash of their process.

#include <sys/uio.h>

#include <algorithm>
#include <array>
#include <csignal>
#include <span>
#include <vector>

#include "core/base/clock.h"
#include "core/trace/ptrace_call.h"
#include "core/trace/tree_state.h"

namespace replpage {
namespace {

// Reports, dumps and memory tests of crash handlers take seconds.
constexpr uint64_t kHandlerNsMax = 30'000'000'000;
// What a handler and the functions that it calls have on the stack, as far as it is looked through.
// (redis tests its memory with a megabyte there).
constexpr uint64_t kHandlerStackMax = 4u << 20;
constexpr size_t kReadBytes = 64 * 1024;

constexpr std::array<int, 7> kCrashSignals = {SIGSEGV, SIGABRT, SIGBUS, SIGILL,
                                              SIGFPE,  SIGSYS,  SIGTRAP};

// A system call that starts again is interrupted before its instruction, not behind it.
constexpr uint64_t kSyscallBytes = 2;

bool holds_frame(std::span<const uint64_t> words, const CrashSignal& crash) {
  for (size_t i = 0; i + 1 < words.size(); ++i) {
    if (words[i] != crash.stack) continue;
    if (words[i + 1] == crash.code || words[i + 1] == crash.code - kSyscallBytes) return true;
  }
  return false;
}

// The frame of a signal holds stack pointer and address of the interrupted code side by side
// (struct sigcontext). While the handler runs it lies above the stack pointer, whichever stack that
// is; once the handler has returned it lies below, or was overwritten.
bool frame_is_on_stack(pid_t tid, uint64_t stack, const CrashSignal& crash) {
  std::vector<uint64_t> words(kReadBytes / sizeof(uint64_t));
  const uint64_t step = kReadBytes - sizeof(uint64_t);  // the pair may lie on the seam
  for (uint64_t at = stack & ~uint64_t{7}; at < stack + kHandlerStackMax; at += step) {
    const iovec local{words.data(), kReadBytes};
    const iovec remote{reinterpret_cast<void*>(at), kReadBytes};  // NOLINT: tracee's
    const ssize_t got = ::process_vm_readv(tid, &local, 1, &remote, 1, 0);
    if (got <= 0) return false;
    if (holds_frame(std::span(words).first(static_cast<size_t>(got) / sizeof(uint64_t)), crash)) {
      return true;
    }
    if (got < static_cast<ssize_t>(kReadBytes)) return false;
  }
  return false;
}

bool is_in_handler(const TracedThread& thread) {
  if (now_ns() - thread.crash.since_ns > kHandlerNsMax) return false;
  if (thread.stop == StopKind::kSignal && thread.signal == thread.crash.signal) return true;
  user_regs_struct registers{};
  if (ptrace_get_registers(thread.tid, registers) != 0) return false;
  return frame_is_on_stack(thread.tid, registers.rsp, thread.crash);
}

}  // namespace

void TraceTree::Implementation::note_crash(TracedThread& thread) {
  if (thread.pid != root ||
      std::find(kCrashSignals.begin(), kCrashSignals.end(), thread.signal) == kCrashSignals.end()) {
    return;
  }
  user_regs_struct registers{};
  if (ptrace_get_registers(thread.tid, registers) != 0) return;
  thread.crash = {
      .signal = thread.signal, .since_ns = now_ns(), .stack = registers.rsp, .code = registers.rip};
}

std::string TraceTree::Implementation::crash_being_handled() {
  const auto process = processes.find(root);
  if (process == processes.end()) return {};
  for (auto& [tid, thread] : process->second.threads) {
    if (thread.crash.signal == 0) continue;
    if (is_in_handler(thread)) {
      return "thread " + std::to_string(tid) + " handles signal " +
             std::to_string(thread.crash.signal);
    }
    thread.crash = {};
  }
  return {};
}

}  // namespace replpage
