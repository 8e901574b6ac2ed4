#include "core/image/injected_state.h"

#include <linux/membarrier.h>
#include <linux/prctl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/time.h>

#include <cstring>
#include <ctime>

#include "core/base/sys_error.h"

namespace replpage {
namespace {

// Newer than Debian 12's headers.
constexpr int kPrGetMdwe = 66;
constexpr int kMembarrierGetRegistrations = 1 << 9;  // Linux 6.3
constexpr uint64_t kSignals = 64, kSignalSetBytes = 8;

class Injection {
 public:
  Injection(pid_t tid, const Inject& inject) : tid_(tid), inject_(inject) {}

  // Result of a call that returns it, `missing` where the kernel does not know the call.
  long value(long number, std::array<uint64_t, 6> arguments, long missing = 0) {
    const long result = run(number, arguments, nullptr);
    return result < 0 ? missing : result;
  }

  // What a call stores through a pointer, which is given as kInjectedData.
  template <class T>
  T stored(const char* operation, long number, std::array<uint64_t, 6> arguments) {
    std::vector<uint8_t> data(sizeof(T));
    const long result = run(number, arguments, &data);
    if (result < 0) throw SysError(operation, static_cast<int>(-result), on_pid(tid_));
    T value{};
    std::memcpy(&value, data.data(), sizeof value);
    return value;
  }

  [[nodiscard]] bool gone() const { return gone_; }

 private:
  long run(long number, const std::array<uint64_t, 6>& arguments, std::vector<uint8_t>* data) {
    if (gone_) return 0;
    const std::optional<long> result = inject_(tid_, number, arguments, data);
    gone_ = !result.has_value();
    return result.value_or(0);
  }

  pid_t tid_;
  const Inject& inject_;
  bool gone_ = false;
};

uint64_t in_us(const timeval& t) {
  return static_cast<uint64_t>(t.tv_sec) * 1'000'000 + static_cast<uint64_t>(t.tv_usec);
}

uint64_t in_ns(const timespec& t) {
  return static_cast<uint64_t>(t.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(t.tv_nsec);
}

void ask_actions(Injection& injection, uint64_t asked, std::vector<SignalAction>& actions) {
  actions.resize(kSignals);
  for (uint64_t signal = 1; signal <= kSignals; ++signal) {
    if ((asked >> (signal - 1) & 1) == 0) continue;
    actions[signal - 1] = injection.stored<SignalAction>(
        "ask for a signal action", SYS_rt_sigaction, {signal, 0, kInjectedData, kSignalSetBytes});
  }
}

void ask_timer_values(Injection& injection, std::vector<PosixTimer>& timers) {
  for (PosixTimer& timer : timers) {
    const auto id = static_cast<uint64_t>(timer.id);
    const auto value =
        injection.stored<itimerspec>("ask for a timer", SYS_timer_gettime, {id, kInjectedData});
    timer.value_ns = in_ns(value.it_value);
    timer.interval_ns = in_ns(value.it_interval);
    timer.overrun = static_cast<int32_t>(injection.value(SYS_timer_getoverrun, {id}));
  }
}

// Kernels before 6.3 do not tell. There all that they know counts: a registration more changes
// nothing but that calls succeed which would have failed, one less fails calls of the program.
uint32_t membarrier_registrations(Injection& injection) {
  const long told = injection.value(SYS_membarrier, {kMembarrierGetRegistrations, 0, 0}, -1);
  if (told >= 0) return static_cast<uint32_t>(told);
  constexpr long kRegistrations = MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED |
                                  MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED |
                                  MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED_SYNC_CORE |
                                  MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED_RSEQ;
  const long known = injection.value(SYS_membarrier, {MEMBARRIER_CMD_QUERY, 0, 0});
  return static_cast<uint32_t>(known & kRegistrations);
}

}  // namespace

std::optional<HiddenThreadState> inject_thread_state(pid_t host_tid, const Inject& inject) {
  Injection injection(host_tid, inject);
  HiddenThreadState state;
  const auto stack = injection.stored<stack_t>("ask for the alternate signal stack",
                                               SYS_sigaltstack, {0, kInjectedData});
  state.altstack = {.sp = reinterpret_cast<uint64_t>(stack.ss_sp),
                    .size = stack.ss_size,
                    .flags = stack.ss_flags & ~SS_ONSTACK};
  state.clear_child_tid = injection.stored<uint64_t>("ask for the tid address", SYS_prctl,
                                                     {PR_GET_TID_ADDRESS, kInjectedData});
  state.parent_death_signal = injection.stored<int32_t>(
      "ask for the parent-death signal", SYS_prctl, {PR_GET_PDEATHSIG, kInjectedData});
  state.securebits =
      static_cast<uint32_t>(injection.value(SYS_prctl, {PR_GET_SECUREBITS, 0, 0, 0, 0}));
  if (injection.gone()) return std::nullopt;
  return state;
}

std::optional<uint32_t> inject_deny_write_execute(pid_t host_tid, const Inject& inject) {
  Injection injection(host_tid, inject);
  const long value = injection.value(SYS_prctl, {kPrGetMdwe, 0, 0, 0, 0});
  if (injection.gone()) return std::nullopt;
  return static_cast<uint32_t>(value);
}

std::optional<HiddenProcessState> inject_process_state(pid_t host_tid, const Inject& inject,
                                                       HiddenProcessState known, uint64_t asked) {
  Injection injection(host_tid, inject);
  HiddenProcessState state = std::move(known);
  ask_actions(injection, asked, state.actions);
  for (uint64_t which = 0; which < state.interval_timers.size(); ++which) {
    const auto timer = injection.stored<itimerval>("ask for an interval timer", SYS_getitimer,
                                                   {which, kInjectedData});
    state.interval_timers[which] = {.value_us = in_us(timer.it_value),
                                    .interval_us = in_us(timer.it_interval)};
  }
  ask_timer_values(injection, state.posix_timers);
  state.brk = static_cast<uint64_t>(injection.value(SYS_brk, {0}));
  state.dumpable = static_cast<int32_t>(injection.value(SYS_prctl, {PR_GET_DUMPABLE, 0, 0, 0, 0}));
  state.child_subreaper = injection.stored<int32_t>("ask for the child subreaper", SYS_prctl,
                                                    {PR_GET_CHILD_SUBREAPER, kInjectedData}) != 0;
  state.membarrier = membarrier_registrations(injection);
  state.deny_write_execute =
      static_cast<uint32_t>(injection.value(SYS_prctl, {kPrGetMdwe, 0, 0, 0, 0}));
  if (injection.gone()) return std::nullopt;
  return state;
}

}  // namespace replpage
