#include "core/trace/interrupted_call.h"

#include <sys/syscall.h>
#include <sys/user.h>

#include <cstddef>

#include "core/trace/ptrace_call.h"

namespace replpage {
namespace {

constexpr long kRestartUnlessHandled = -514;  // -ERESTARTNOHAND, include/linux/errno.h

bool waits_without_end(const user_regs_struct& registers) {
  switch (registers.orig_rax) {
    case SYS_epoll_wait:
    case SYS_epoll_pwait:
      return static_cast<int>(registers.r10) < 0;
    case SYS_epoll_pwait2:
    case SYS_semtimedop:
      return registers.r10 == 0;
    case SYS_semop:
      return true;
    case SYS_rt_sigtimedwait:
      return registers.rdx == 0;
    default:
      return false;
  }
}

}  // namespace

void mend_interrupted_call(pid_t tid) noexcept {
  constexpr uintptr_t kResult = offsetof(user, regs) + offsetof(user_regs_struct, rax);
  errno = 0;
  // Not through ptrace_call: the value itself may be a negative number.
  const long result = ::ptrace(PTRACE_PEEKUSER, tid, kResult, nullptr);
  if (errno != 0 || result != -EINTR) return;
  user_regs_struct registers{};
  if (ptrace_get_registers(tid, registers) != 0 || !waits_without_end(registers)) return;
  ptrace_call(PTRACE_POKEUSER, tid, kResult, static_cast<uintptr_t>(kRestartUnlessHandled));
}

}  // namespace replpage
