#include "core/image/ptrace_state.h"

#include <elf.h>
#include <signal.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "core/base/sys_error.h"

namespace replpage {
namespace {

// AMX makes the area 11 KiB; the kernel writes what fits and tells how much there is.
constexpr size_t kXstateBytesMax = 16 * 1024;
constexpr size_t kSignalsPerRequest = 32;
constexpr size_t kPendingMax = 1 << 20;  // RLIMIT_SIGPENDING bounds it in practice

bool gone(const char* operation, pid_t tid) {
  if (errno == ESRCH) return true;
  throw SysError::from_errno(operation, on_pid(tid));
}

// Size that the kernel wrote, nullopt when the thread is gone.
std::optional<size_t> read_register_set(pid_t tid, unsigned set, void* data, size_t size) {
  iovec area{data, size};
  if (::ptrace(PTRACE_GETREGSET, tid, static_cast<uintptr_t>(set), &area) == 0) {
    return area.iov_len;
  }
  gone("read registers", tid);
  return std::nullopt;
}

bool read_rseq(pid_t tid, RseqRegistration& rseq) {
  __ptrace_rseq_configuration configuration{};
  const long size =
      ::ptrace(PTRACE_GET_RSEQ_CONFIGURATION, tid, sizeof configuration, &configuration);
  if (size < 0 && (errno == EIO || errno == EINVAL)) return true;  // kernel without rseq
  if (size < 0) return !gone("read rseq", tid);
  rseq = {.pointer = configuration.rseq_abi_pointer,
          .size = configuration.rseq_abi_pointer == 0 ? 0 : configuration.rseq_abi_size,
          .signature = configuration.signature,
          .flags = configuration.flags};
  return true;
}

bool read_robust_list(pid_t tid, ThreadImage& image) {
  uint64_t head = 0;
  size_t size = 0;
  if (::syscall(SYS_get_robust_list, tid, &head, &size) != 0) {
    return !gone("read the robust list", tid);
  }
  image.robust_list = head;
  image.robust_list_size = size;
  return true;
}

}  // namespace

bool read_thread_registers(pid_t tid, ThreadImage& image) {
  const auto general =
      read_register_set(tid, NT_PRSTATUS, &image.registers, sizeof image.registers);
  if (!general) return false;
  if (*general != sizeof image.registers)
    throw SysError("read 32-bit registers", ENOTSUP, on_pid(tid));
  alignas(64) uint8_t xstate[kXstateBytesMax];
  const auto extended = read_register_set(tid, NT_X86_XSTATE, xstate, sizeof xstate);
  if (!extended) return false;
  image.xstate.assign(xstate, xstate + *extended);
  if (::ptrace(PTRACE_GETSIGMASK, tid, sizeof image.blocked_signals, &image.blocked_signals) != 0) {
    return !gone("read the signal mask", tid);
  }
  return read_robust_list(tid, image) && read_rseq(tid, image.rseq);
}

std::optional<std::vector<SignalInfo>> read_pending(pid_t tid, SignalQueue queue) {
  std::vector<SignalInfo> pending;
  for (uint64_t offset = 0; offset < kPendingMax;) {
    SignalInfo batch[kSignalsPerRequest];
    __ptrace_peeksiginfo_args arguments{};
    arguments.off = offset;
    arguments.flags = queue == SignalQueue::kProcess ? PTRACE_PEEKSIGINFO_SHARED : 0;
    arguments.nr = kSignalsPerRequest;
    const long got = ::ptrace(PTRACE_PEEKSIGINFO, tid, &arguments, batch);
    if (got < 0) {
      gone("read pending signals", tid);
      return std::nullopt;
    }
    pending.insert(pending.end(), batch, batch + got);
    if (got < static_cast<long>(kSignalsPerRequest)) break;
    offset += static_cast<uint64_t>(got);
  }
  std::erase_if(pending, [](const SignalInfo& info) { return signal_of(info) == SIGKILL; });
  return pending;
}

std::optional<StopCause> read_stop_cause(pid_t tid) {
  SignalInfo raw{};
  static_assert(sizeof(SignalInfo) == sizeof(siginfo_t));
  if (::ptrace(PTRACE_GETSIGINFO, tid, 0, raw.data()) != 0) {
    // EINVAL: a stop without a signal, as some kernels show a group stop.
    if (errno == EINVAL) return StopCause{};
    gone("read the stop's signal", tid);
    return std::nullopt;
  }
  siginfo_t info{};
  std::memcpy(&info, raw.data(), sizeof info);
  StopCause cause;
  const int event = info.si_code > 0 ? info.si_code >> 8 : 0;
  if (event == 0) {
    cause.delivery = raw;
  } else if (event == PTRACE_EVENT_STOP) {
    cause.group_stop = info.si_signo != SIGTRAP;
  }
  return cause;
}

}  // namespace replpage
