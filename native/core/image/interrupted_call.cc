#include "core/image/interrupted_call.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/syscall.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <optional>
#include <string>

#include "core/base/procfs.h"
#include "core/trace/interrupted_call.h"

namespace replpage {
namespace {

// Calls that give EINTR after a stop even without a handler, and have done nothing then: signal(7),
// sockets only with a timeout set.
constexpr std::array<uint64_t, 16> kCallsEndedByStops = {
    SYS_epoll_wait,   SYS_epoll_pwait, 441 /* epoll_pwait2 */,
    SYS_semop,        SYS_semtimedop,  SYS_rt_sigtimedwait,
    SYS_io_getevents, SYS_msgrcv,      SYS_msgsnd,
    SYS_accept,       SYS_accept4,     SYS_recvfrom,
    SYS_recvmsg,      SYS_sendto,      SYS_sendmsg,
    SYS_rt_sigsuspend};

constexpr std::array<uint64_t, 4> kCallsThatFork = {SYS_fork, SYS_vfork, SYS_clone, SYS_clone3};
constexpr std::array<uint64_t, 2> kCallsThatEnd = {SYS_exit, SYS_exit_group};
constexpr std::array<uint64_t, 2> kCallsThatExecute = {SYS_execve, SYS_execveat};

// Calls that have done something when they give EINTR.
constexpr std::array<uint64_t, 2> kCallsNotToRepeat = {SYS_close, SYS_connect};

// Calls that have done nothing, or nothing that cannot be done twice, when they give EFAULT.
constexpr std::array<uint64_t, 22> kCallsThatMoveBytes = {
    SYS_read,       SYS_pread64, SYS_readv,      SYS_preadv,         SYS_preadv2, SYS_write,
    SYS_pwrite64,   SYS_writev,  SYS_pwritev,    SYS_pwritev2,       SYS_sendto,  SYS_sendmsg,
    SYS_poll,       SYS_ppoll,   SYS_select,     SYS_pselect6,       SYS_stat,    SYS_fstat,
    SYS_newfstatat, SYS_futex,   SYS_getdents64, SYS_clock_nanosleep};

template <size_t N>
bool holds(const std::array<uint64_t, N>& calls, uint64_t number) {
  return std::find(calls.begin(), calls.end(), number) != calls.end();
}

bool same_call(const user_regs_struct& a, const user_regs_struct& b) {
  return a.rip == b.rip && a.rsp == b.rsp && a.rdi == b.rdi && a.rsi == b.rsi && a.rdx == b.rdx &&
         a.r10 == b.r10 && a.r8 == b.r8 && a.r9 == b.r9;
}

void settle_restart_call(pid_t host_tid, const ThreadImage* previous, user_regs_struct& registers) {
  if (previous != nullptr && same_call(previous->registers, registers) &&
      holds(kCallsWithRestartBlock, previous->registers.orig_rax)) {
    registers.orig_rax = previous->registers.orig_rax;
    return;
  }
  if (const auto number = restarted_call_in_code(host_tid, registers.rip)) {
    registers.orig_rax = *number;
    return;
  }
  registers.rax = static_cast<uint64_t>(-EINTR);
}

// Copies from or to a file, at a place of its own, that ended before the end of the buffer: only a
// kill does that, or a reason that is still there. Where a write appends, it has done so.
bool was_cut_short(const ThreadImage& image) {
  const user_regs_struct& registers = image.registers;
  const auto result = static_cast<int64_t>(registers.rax);
  const bool reads = registers.orig_rax == SYS_pread64;
  if (!reads && registers.orig_rax != SYS_pwrite64) return false;
  if (result <= 0 || registers.rax >= registers.rdx) return false;
  if (reads) return true;
  const auto info = read_proc("/proc/" + std::to_string(image.host_tid) + "/fdinfo/" +
                              std::to_string(static_cast<int32_t>(registers.rdi)));
  const auto flags = info ? field_of(*info, "flags") : std::nullopt;
  return flags && (std::stoul(std::string(*flags), nullptr, 8) & O_APPEND) == 0;
}

// Raised by the instruction itself, before it has done anything.
bool is_of_fault(const SignalInfo& info) {
  int32_t words[3];  // siginfo_t: si_signo, si_errno, si_code
  std::memcpy(words, info.data(), sizeof words);
  return (words[0] == SIGSEGV || words[0] == SIGBUS) && words[2] > 0;
}

}  // namespace

void settle_interrupted_call(pid_t host_tid, const ThreadImage* previous, ThreadImage& image) {
  user_regs_struct& registers = image.registers;
  if (static_cast<int64_t>(registers.orig_rax) < 0) return;  // not in a system call
  const auto result = static_cast<int64_t>(registers.rax);
  const bool restarts = result == kRestartSystem || result == kRestartNoInterrupt ||
                        result == kRestartNoHandler || result == kRestartBlock;
  if (restarts && registers.orig_rax == SYS_restart_syscall) {
    settle_restart_call(host_tid, previous, registers);
  } else if (result == -EINTR && holds(kCallsEndedByStops, registers.orig_rax)) {
    registers.rax = static_cast<uint64_t>(kRestartNoHandler);
  }
}

bool is_within_execution(const ThreadImage& image) {
  return holds(kCallsThatExecute, image.registers.orig_rax) &&
         static_cast<int64_t>(image.registers.rax) < 0;
}

void settle_killed_call(ThreadImage& image) {
  user_regs_struct& registers = image.registers;
  if (static_cast<int64_t>(registers.orig_rax) < 0) {
    std::erase_if(image.pending, is_of_fault);
    return;
  }
  const auto result = static_cast<int64_t>(registers.rax);
  const uint64_t call = registers.orig_rax;
  const bool forked_not = holds(kCallsThatFork, call) && (result == -EINTR || result == -ENOMEM);
  if (forked_not || holds(kCallsThatEnd, call) || is_within_execution(image) ||
      was_cut_short(image)) {
    registers.rax = static_cast<uint64_t>(kRestartNoInterrupt);
  } else if ((result == -EINTR && !holds(kCallsNotToRepeat, call)) ||
             (result == -EFAULT && holds(kCallsThatMoveBytes, call))) {
    registers.rax = static_cast<uint64_t>(kRestartNoHandler);
  }
}

}  // namespace replpage
