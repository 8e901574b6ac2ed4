// One system call in a stopped thread, which ends by itself if we die at any instruction: the call
// returns into a restorer that runs rt_sigreturn over a frame with everything the thread had.
//
// Alive, we take the thread back at the end of the call and set its registers ourselves: unlike
// rt_sigreturn that keeps the kernel's restart block of an interrupted sleep.
//
// Order matters at every step; each comment says what a death right there would leave behind.

#include <elf.h>
#include <sys/syscall.h>

#include <algorithm>
#include <cstring>

#include "core/base/clock.h"
#include "core/base/procfs.h"
#include "core/base/restartable_sequence.h"
#include "core/base/sys_error.h"
#include "core/trace/interrupted_call.h"
#include "core/trace/ptrace_call.h"
#include "core/trace/remote_memory.h"
#include "core/trace/signal_frame.h"
#include "core/trace/tree_state.h"

namespace replpage {
namespace {

constexpr uint64_t kCallDeadlineNs = 1'000'000'000;
constexpr uint64_t kRedZoneBytes = 128;
constexpr uint64_t kCode64 = 0x33;               // code segment of 64-bit user code
constexpr uintptr_t kSuspendSeccomp = 1u << 21;  // PTRACE_O_SUSPEND_SECCOMP
constexpr int kSyscallStop = SIGTRAP | 0x80;     // PTRACE_O_TRACESYSGOOD

struct RseqConfiguration {  // struct ptrace_rseq_configuration, linux/ptrace.h
  uint64_t area;
  uint32_t area_size, signature, flags, padding;
};

// Moving a thread out of a restartable sequence must abort the sequence, as the kernel does when it
// preempts it: when the thread comes back it would otherwise go on as if nothing had happened.
void abort_restartable_sequence(pid_t tid, user_regs_struct& registers) {
  constexpr int kGetRseqConfiguration = 0x420f;
  RseqConfiguration configuration{};
  if (ptrace_call(kGetRseqConfiguration, tid, sizeof configuration,
                  reinterpret_cast<uintptr_t>(&configuration)) <= 0 ||
      configuration.area == 0) {
    return;
  }
  const auto abort = abort_of_sequence(tid, configuration.area, registers.rip);
  if (abort) registers.rip = *abort;
}

// rt_sigreturn leaves nothing of a restart block: a call that was interrupted twice, and shows as
// restart_syscall, begins anew from its frame.
user_regs_struct as_begun_anew(pid_t tid, user_regs_struct registers) {
  constexpr int64_t kRestartBlock = -516;  // -ERESTART_RESTARTBLOCK, include/linux/errno.h
  if (registers.orig_rax != SYS_restart_syscall ||
      static_cast<int64_t>(registers.rax) != kRestartBlock) {
    return registers;
  }
  if (const auto call = restarted_call_in_code(tid, registers.rip)) registers.orig_rax = *call;
  return registers;
}

// Below the part of a stack that is mapped yet, which process_vm_readv(2) does not extend (since
// Linux 6.5) but ptrace does.
bool read_stack(pid_t tid, uint64_t address, std::vector<uint8_t>& bytes) {
  if (read_remote(tid, address, bytes.data(), bytes.size())) return true;
  if (!ptrace_touch(tid, address)) return false;
  return read_remote(tid, address, bytes.data(), bytes.size());
}

// Everything of one injection.
struct RemoteCall {
  pid_t tid = 0;
  user_regs_struct saved{};
  uint64_t signal_mask = 0;
  std::vector<uint8_t> extended_state;
  SignalFrame frame;
  uint64_t data_address = 0;
  std::vector<uint8_t> overwritten;  // what stood at frame.address, to be put back

  bool read_state() {
    if (ptrace_get_registers(tid, saved) != 0) return false;
    if (ptrace_get_signal_mask(tid, signal_mask) != 0) return false;
    extended_state.resize(64 * 1024);
    iovec state{.iov_base = extended_state.data(), .iov_len = extended_state.size()};
    if (ptrace_call(PTRACE_GETREGSET, tid, NT_X86_XSTATE, reinterpret_cast<uintptr_t>(&state)) != 0)
      return false;
    extended_state.resize(state.iov_len);
    abort_restartable_sequence(tid, saved);
    return true;
  }

  // Below `end`: the data, below that the frame. Nothing of the thread's state changes yet.
  bool place(uint64_t end, uint64_t restorer, const std::vector<uint8_t>* data, bool keep_old) {
    data_address = (end - (data != nullptr ? data->size() : 0)) & ~uint64_t{63};
    frame = build_signal_frame(as_begun_anew(tid, saved), extended_state, signal_mask, restorer,
                               data_address);
    if (keep_old) {
      overwritten.resize(end - frame.address);
      if (!read_stack(tid, frame.address, overwritten)) return false;
    }
    if (data != nullptr && !data->empty() &&
        !write_remote(tid, data_address, data->data(), data->size())) {
      return false;
    }
    return write_remote(tid, frame.address, frame.bytes.data(), frame.bytes.size());
  }

  user_regs_struct call_registers(long number, const std::array<uint64_t, 6>& arguments,
                                  uint64_t code) const {
    user_regs_struct registers = saved;
    const auto value = [&](size_t i) {
      return arguments[i] == TraceTree::kDataArgument ? data_address : arguments[i];
    };
    registers.rdi = value(0);
    registers.rsi = value(1);
    registers.rdx = value(2);
    registers.r10 = value(3);
    registers.r8 = value(4);
    registers.r9 = value(5);
    registers.rax = static_cast<uint64_t>(number);
    registers.orig_rax = ~uint64_t{0};  // nothing to restart
    registers.rip = code;
    registers.rsp = frame.address;
    return registers;
  }
};

// Of the threads that stand, but for the leader's, below which all is dead.
std::vector<uint64_t> other_stack_pointers(const TracedProcess& process) {
  std::vector<uint64_t> pointers;
  for (const auto& [tid, thread] : process.threads) {
    user_regs_struct registers{};
    const bool stands = tid != process.pid && thread.stop != StopKind::kRunning;
    if (stands && ptrace_get_registers(tid, registers) == 0) pointers.push_back(registers.rsp);
  }
  return pointers;
}

bool has_seccomp(pid_t tid) {
  const auto status = read_proc("/proc/" + std::to_string(tid) + "/status");
  const auto mode = status ? field_of(*status, "Seccomp") : std::nullopt;
  return mode && *mode != "0";
}

}  // namespace

// By the thread's own number: a leader that has ended has no memory map any more.
InjectionSite& TraceTree::Implementation::site_for(const TracedThread& thread, uint64_t size) {
  const pid_t pid = thread.pid;
  const uint32_t executions = processes[pid].executions;
  InjectionSite& site = sites[pid];
  if (site.executions != executions || !injection_code_is_there(thread.tid, site)) {
    site = find_injection_code(thread.tid);
    site.executions = executions;
  }
  user_regs_struct main{};
  const TracedThread* leader = find(pid);
  const bool known = leader != nullptr && leader->stop != StopKind::kRunning &&
                     ptrace_get_registers(pid, main) == 0;
  const uint64_t main_stack_pointer = known ? main.rsp : 0;
  if (!scratch_serves(size, main_stack_pointer, site)) {
    find_scratch(thread.tid, size, main_stack_pointer, other_stack_pointers(processes[pid]), site);
  }
  return site;
}

// Until the call's end, or nullopt when the thread is gone. Throws SysError (ETIMEDOUT).
std::optional<long> TraceTree::Implementation::run_call(pid_t tid) {
  const uint64_t deadline = now_ns() + kCallDeadlineNs;
  const uint64_t outer = wait.arm(deadline);
  struct Rearm {
    ChildWait& wait;
    uint64_t outer;
    ~Rearm() { wait.arm(outer); }
  } rearm{wait, outer};
  int signal = 0;
  int stops = 0;
  for (;;) {
    if (ptrace_resume(PTRACE_SYSCALL, tid, signal) == 0) {
      find(tid)->stop = StopKind::kRunning;
    }
    ChildEvent event;
    Peeked peeked = Peeked::kInterrupted;
    while (peeked == Peeked::kInterrupted) {
      wait.begin();
      if (now_ns() >= deadline) {
        // It stays out there, completes by itself, and needs its frame until then.
        sites.erase(find(tid)->pid);
        throw SysError("injected system call", ETIMEDOUT, on_pid(tid));
      }
      peeked = wait.peek(tid, event, Blocking::kYes);
    }
    if (peeked == Peeked::kNoChild) {
      handle_vanished(tid);
      return std::nullopt;
    }
    signal = 0;
    if (event.ended() || event.event() == PTRACE_EVENT_EXIT) {
      handle(event);
      return std::nullopt;
    }
    if (event.event() == PTRACE_EVENT_STOP) continue;
    if (event.event() != 0) {
      handle_birth(*find(tid), event.event());
      continue;
    }
    if (event.signal() != kSyscallStop) {
      signal = event.signal();  // all others are blocked: it is SIGSTOP
      continue;
    }
    if (++stops < 2) continue;  // the first is the call's entry
    user_regs_struct registers{};
    if (ptrace_get_registers(tid, registers) == 0) return static_cast<long>(registers.rax);
  }
}

// From the end of the call back to where the thread stood.
bool TraceTree::Implementation::take_back(const InjectionState& state) {
  const pid_t tid = state.tid;
  // Makes the kernel look at the registers again, and at a call to be restarted, before user code.
  ptrace_interrupt(tid);
  // Dying after this: rt_sigreturn still gives everything back.
  ptrace_set_signal_mask(tid, state.signal_mask);
  // Dying after this: it has everything back.
  ptrace_set_registers(tid, state.registers);
  find(tid)->stop = StopKind::kRunning;
  ptrace_continue(tid, 0);
  const bool was_holding = std::exchange(holding, true);
  const pid_t was_dying = std::exchange(dying, 0);
  while (const TracedThread* thread = find(tid)) {
    if (thread->stop != StopKind::kRunning) break;
    wait.begin();
    look_at(tid, Blocking::kYes);
  }
  holding = was_holding;
  dying = was_dying;
  const TracedThread* thread = find(tid);
  return thread != nullptr && thread->stop != StopKind::kExit;
}

std::optional<long> TraceTree::Implementation::inject(pid_t tid, long number,
                                                      std::array<uint64_t, 6> arguments,
                                                      std::vector<uint8_t>* data) {
  const TracedThread* thread = find(tid);
  if (thread == nullptr || thread->stop == StopKind::kExit) return std::nullopt;
  const bool stands = thread->stop == StopKind::kInterrupt ||
                      (thread->stop == StopKind::kGroupStop && !marks[tid].listening);
  if (!stands) throw SysError("injected system call", EBUSY, on_pid(tid));
  RemoteCall call;
  call.tid = tid;
  if (!call.read_state()) return std::nullopt;
  if (call.saved.cs != kCode64) throw SysError("injected system call", ENOTSUP, on_pid(tid));
  const uint64_t data_size = data != nullptr ? data->size() + 64 : 0;
  const InjectionSite site = site_for(*thread, signal_frame_size(call.extended_state) + data_size);
  if (site.plain_syscall == 0) throw SysError("find system call code", ENOENT, on_pid(tid));
  const bool own_stack = site.scratch == 0;
  const uint64_t end = own_stack ? (call.saved.rsp - kRedZoneBytes) & ~uint64_t{63}
                                 : site.scratch_end - kScratchMarkBytes;
  if ((!own_stack && !mark_scratch(tid, site)) ||
      !call.place(end, site.restorer, data, own_stack)) {
    if (!is_thread_of(thread->pid, tid)) return std::nullopt;
    throw SysError("place an injected system call", EFAULT, at_address(tid, end));
  }
  const auto result = run_injected(
      {tid, call.saved, call.signal_mask},
      call.call_registers(number, arguments,
                          site.self_completing() ? site.syscall_return : site.plain_syscall),
      site.self_completing());
  if (!result) return std::nullopt;
  if (data != nullptr && !data->empty()) {
    read_remote(tid, call.data_address, data->data(), data->size());
  }
  if (own_stack) {
    write_remote(tid, call.frame.address, call.overwritten.data(), call.overwritten.size());
  }
  return result;
}

// From the thread's own registers to those of the call, and back.
std::optional<long> TraceTree::Implementation::run_injected(const InjectionState& state,
                                                            const user_regs_struct& registers,
                                                            bool self_completing) {
  const pid_t tid = state.tid;
  if (!self_completing) ++counters.plain_injections;
  if (ptrace_call(PTRACE_SETOPTIONS, tid, 0, static_cast<uintptr_t>(options) | kSuspendSeccomp) !=
          0 &&
      has_seccomp(tid)) {
    throw SysError("suspend seccomp", EPERM, on_pid(tid));
  }
  injection = state;
  struct Forget {
    std::optional<InjectionState>& injection;
    ~Forget() { injection.reset(); }
  } forget{injection};
  // Dying after this: the thread makes the call, and the frame gives everything back.
  if (ptrace_set_registers(tid, registers) != 0) return std::nullopt;
  // So that no signal handler's stop comes in between. Dying after this: the same.
  ptrace_set_signal_mask(tid, ~uint64_t{0});
  const auto result = run_call(tid);
  if (!result || !take_back(state)) return std::nullopt;
  ptrace_call(PTRACE_SETOPTIONS, tid, 0, static_cast<uintptr_t>(options));
  return result;
}

}  // namespace replpage
