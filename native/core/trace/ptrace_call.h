// ptrace(2) with errno as its result: 0 or -errno. ESRCH means that the thread is gone or not
// stopped, which callers treat as news, not as an error.
#pragma once

#include <sys/ptrace.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <sys/user.h>

#include <cerrno>
#include <csignal>
#include <cstddef>
#include <cstdint>

namespace replpage {

inline long ptrace_call(int request, pid_t tid, uintptr_t address, uintptr_t data) noexcept {
  errno = 0;
  const long result =
      ::ptrace(static_cast<__ptrace_request>(request), tid, address, data);  // NOLINT
  return result == -1 && errno != 0 ? -errno : result;
}

// Killed meanwhile, a thread has left the stop that it is to be continued from: it is on its way to
// its exit stop, or stands there already.
inline bool ptrace_was_killed(pid_t tid, int signal) noexcept {
  siginfo_t info{};
  const long result = ptrace_call(PTRACE_GETSIGINFO, tid, 0, reinterpret_cast<uintptr_t>(&info));
  if (result != 0) return result == -ESRCH;
  // A SIGTRAP that the program sent to itself may look like the event.
  return signal != SIGTRAP && info.si_signo == SIGTRAP &&
         info.si_code == (SIGTRAP | PTRACE_EVENT_EXIT << 8);
}

// Ends any stop but the exit stop, for which it gives -ESRCH as for a thread that runs: its news
// are still to come. One that is killed after the look has to wake up and to run first, so that it
// is not at its exit stop yet when the call comes: unless the caller was kept from running between
// the two, which is why tracers run before others.
inline long ptrace_resume(int request, pid_t tid, int signal) noexcept {
  if (ptrace_was_killed(tid, signal)) return -ESRCH;
  return ptrace_call(request, tid, 0, static_cast<uintptr_t>(signal));
}

inline long ptrace_continue(pid_t tid, int signal) noexcept {
  return ptrace_resume(PTRACE_CONT, tid, signal);
}

inline long ptrace_detach(pid_t tid, int signal) noexcept {
  return ptrace_call(PTRACE_DETACH, tid, 0, static_cast<uintptr_t>(signal));
}

inline long ptrace_interrupt(pid_t tid) noexcept {
  return ptrace_call(PTRACE_INTERRUPT, tid, 0, 0);
}

// Number that belongs to the present event: a new tid, a former tid or an exit code.
inline unsigned long ptrace_event_message(pid_t tid) noexcept {
  unsigned long message = 0;
  ptrace_call(PTRACE_GETEVENTMSG, tid, 0, reinterpret_cast<uintptr_t>(&message));
  return message;
}

// Whether there is memory. A stack grows by this, as by an access of its own.
inline bool ptrace_touch(pid_t tid, uint64_t address) noexcept {
  errno = 0;
  ::ptrace(PTRACE_PEEKDATA, tid, address, nullptr);
  return errno == 0;
}

inline long ptrace_get_registers(pid_t tid, user_regs_struct& registers) noexcept {
  return ptrace_call(PTRACE_GETREGS, tid, 0, reinterpret_cast<uintptr_t>(&registers));
}

inline long ptrace_set_registers(pid_t tid, const user_regs_struct& registers) noexcept {
  return ptrace_call(PTRACE_SETREGS, tid, 0, reinterpret_cast<uintptr_t>(&registers));
}

inline long ptrace_get_signal_mask(pid_t tid, uint64_t& mask) noexcept {
  return ptrace_call(PTRACE_GETSIGMASK, tid, sizeof mask, reinterpret_cast<uintptr_t>(&mask));
}

inline long ptrace_set_signal_mask(pid_t tid, uint64_t mask) noexcept {
  return ptrace_call(PTRACE_SETSIGMASK, tid, sizeof mask, reinterpret_cast<uintptr_t>(&mask));
}

inline bool is_stop_signal(int signal) noexcept {
  return signal == SIGSTOP || signal == SIGTSTP || signal == SIGTTIN || signal == SIGTTOU;
}

// Thread of that process? Asks the kernel without sending anything.
bool is_thread_of(pid_t pid, pid_t tid) noexcept;

}  // namespace replpage
