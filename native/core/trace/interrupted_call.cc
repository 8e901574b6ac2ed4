#include "core/trace/interrupted_call.h"

#include <sys/syscall.h>
#include <sys/user.h>

#include <algorithm>
#include <cstddef>
#include <cstring>

#include "core/trace/ptrace_call.h"
#include "core/trace/remote_memory.h"

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

std::optional<uint64_t> restarted_call_in_code(pid_t tid, uint64_t return_address) {
  constexpr size_t kWindow = 32, kLoadBytes = 5, kCallBytes = 2;
  std::array<uint8_t, kWindow> code{};
  if (!read_remote(tid, return_address - kWindow, code.data(), code.size())) return std::nullopt;
  if (code[kWindow - 2] != 0x0F || code[kWindow - 1] != 0x05) return std::nullopt;
  for (size_t at = kWindow - kCallBytes - kLoadBytes + 1; at-- > 0;) {
    if (code[at] != 0xB8) continue;
    uint32_t number = 0;
    std::memcpy(&number, &code[at + 1], sizeof number);
    const auto& calls = kCallsWithRestartBlock;
    if (std::find(calls.begin(), calls.end(), number) != calls.end()) return number;
  }
  return std::nullopt;
}

}  // namespace replpage
