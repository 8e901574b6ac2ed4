#include "core/restore/thread_state.h"

#include <elf.h>
#include <linux/capability.h>
#include <linux/futex.h>
#include <linux/securebits.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "core/base/sys_error.h"
#include "core/image/interrupted_call.h"
#include "core/image/scheduling_attributes.h"

namespace replpage {
namespace {

constexpr int kIoprioWhoProcess = 1;  // IOPRIO_WHO_PROCESS of ioprio_set(2)
constexpr int kCapabilityLast = 63;   // bits of the sets in /proc/PID/status

struct CapabilitySets {
  uint64_t effective = 0, permitted = 0, inheritable = 0;
};

// capset(2) and capget(2), version 3: two halves of 32 bits each.
using CapabilityData = std::array<__user_cap_data_struct, 2>;

CapabilityData capability_data(const CapabilitySets& sets) {
  CapabilityData data{};
  for (unsigned half = 0; half < 2; ++half) {
    data[half].effective = static_cast<uint32_t>(sets.effective >> (32 * half));
    data[half].permitted = static_cast<uint32_t>(sets.permitted >> (32 * half));
    data[half].inheritable = static_cast<uint32_t>(sets.inheritable >> (32 * half));
  }
  return data;
}

uint64_t own_permitted() {
  __user_cap_header_struct header{.version = _LINUX_CAPABILITY_VERSION_3, .pid = 0};
  CapabilityData data{};
  if (::syscall(SYS_capget, &header, data.data()) != 0) throw SysError::from_errno("capget");
  return data[0].permitted | (uint64_t{data[1].permitted} << 32);
}

void add_capset(const char* label, const CapabilitySets& sets, SyscallBatch& batch) {
  const __user_cap_header_struct header{.version = _LINUX_CAPABILITY_VERSION_3, .pid = 0};
  batch.add(label, SYS_capset,
            {BatchArgument::data(batch.put_value(header)),
             BatchArgument::data(batch.put_value(capability_data(sets)))});
}

void add_ids(const Credentials& credentials, SyscallBatch& batch) {
  const auto& [uid, euid, suid, fsuid] = credentials.uids;
  const auto& [gid, egid, sgid, fsgid] = credentials.gids;
  const std::span<const uint8_t> groups{reinterpret_cast<const uint8_t*>(credentials.groups.data()),
                                        credentials.groups.size() * sizeof(uint32_t)};
  batch.add("supplementary groups", SYS_setgroups,
            {credentials.groups.size(), BatchArgument::data(batch.put(groups))});
  batch.add("group ids", SYS_setresgid, {gid, egid, sgid});
  if (fsgid != egid) batch.add("file system group id", SYS_setfsgid, {fsgid});
  batch.add("user ids", SYS_setresuid, {uid, euid, suid});
  if (fsuid != euid) batch.add("file system user id", SYS_setfsuid, {fsuid});
}

// The order follows from what each step needs (capabilities(7)): user ids must not clear
// capabilities (SECBIT_NO_SETUID_FIXUP), the inheritable set may hold what the bounding set no
// longer does, ambient needs permitted and inheritable, securebits need CAP_SETPCAP, and capset
// ends it all.
void add_credentials(const Credentials& credentials, SyscallBatch& batch) {
  const uint64_t rights = own_permitted();
  batch.add("securebits", SYS_prctl, {PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP});
  add_ids(credentials, batch);
  add_capset("inheritable capabilities", {rights, rights, credentials.cap_inheritable}, batch);
  for (int capability = 0; capability <= kCapabilityLast; ++capability) {
    if ((credentials.cap_bounding >> capability & 1) != 0) continue;
    if (::prctl(PR_CAPBSET_READ, capability, 0, 0, 0) != 1) continue;  // unknown or not there
    batch.add("bounding capability", SYS_prctl, {PR_CAPBSET_DROP, capability});
  }
  batch.add("ambient capabilities", SYS_prctl, {PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0});
  for (int capability = 0; capability <= kCapabilityLast; ++capability) {
    if ((credentials.cap_ambient >> capability & 1) == 0) continue;
    batch.add("ambient capability", SYS_prctl,
              {PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, capability, 0, 0});
  }
  batch.add("securebits", SYS_prctl, {PR_SET_SECUREBITS, credentials.securebits});
  add_capset("capabilities",
             {credentials.cap_effective, credentials.cap_permitted, credentials.cap_inheritable},
             batch);
  if (credentials.no_new_privs) {
    batch.add("no_new_privs", SYS_prctl, {PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0});
  }
}

// Affinity comes before the policy: SCHED_DEADLINE threads may not change it.
SchedulingAttributes attributes_of(const Scheduling& scheduling) {
  return {.policy = scheduling.policy,
          .flags = scheduling.flags,
          .nice = scheduling.nice,
          .priority = scheduling.priority,
          .runtime_ns = scheduling.runtime_ns,
          .deadline_ns = scheduling.deadline_ns,
          .period_ns = scheduling.period_ns};
}

void add_scheduling(const Scheduling& scheduling, SetScheduling when, SyscallBatch& batch) {
  if (when == SetScheduling::kByItself && !scheduling.affinity.empty()) {
    batch.add("CPU affinity", SYS_sched_setaffinity,
              {0, scheduling.affinity.size(), BatchArgument::data(batch.put(scheduling.affinity))},
              false);
  }
  // By itself: sched_setattr(2) sets it with the ordinary policies only.
  batch.add("nice", SYS_setpriority, {int{PRIO_PROCESS}, 0, scheduling.nice}, false);
  if (when == SetScheduling::kByItself) {
    batch.add("scheduling policy", SYS_sched_setattr,
              {0, BatchArgument::data(batch.put_value(attributes_of(scheduling))), 0}, false);
  }
  if (scheduling.io_priority != 0) {
    batch.add("I/O priority", SYS_ioprio_set, {kIoprioWhoProcess, 0, scheduling.io_priority},
              false);
  }
  batch.add("timer slack", SYS_prctl, {PR_SET_TIMERSLACK, scheduling.timer_slack_ns}, false);
}

void add_pending(const ProcessImage& process, const ThreadImage& thread, SyscallBatch& batch) {
  for (const SignalInfo& info : thread.pending) {
    if (is_given_last(info)) continue;
    batch.add(
        "pending signal", SYS_rt_tgsigqueueinfo,
        {process.pid, thread.tid, signal_of(info), BatchArgument::data(batch.put_value(info))});
  }
}

void set_registers(pid_t tid, unsigned set, const void* data, size_t size, const char* operation) {
  iovec area{const_cast<void*>(data), size};  // NOLINT: ptrace only reads it
  if (::ptrace(PTRACE_SETREGSET, tid, static_cast<uintptr_t>(set), &area) != 0) {
    throw SysError::from_errno(operation, on_pid(tid));
  }
}

// Nothing but a whole area is taken (xstateregs_set in arch/x86/kernel/fpu/regset.c). A processor
// with more registers has a longer one; what the primary's did not have is in its first state.
void set_xstate(pid_t tid, const Bytes& xstate) {
  constexpr size_t kAreaBytesMax = 64 * 1024;
  constexpr const char* kOperation = "set extended registers";
  iovec area{const_cast<uint8_t*>(xstate.data()), xstate.size()};  // NOLINT: ptrace only reads it
  if (::ptrace(PTRACE_SETREGSET, tid, NT_X86_XSTATE, &area) == 0) return;
  const int error = errno;
  Bytes whole(kAreaBytesMax);
  area = {whole.data(), whole.size()};
  const bool known = ::ptrace(PTRACE_GETREGSET, tid, NT_X86_XSTATE, &area) == 0;
  if (!known || area.iov_len <= xstate.size()) throw SysError(kOperation, error, on_pid(tid));
  whole = xstate;
  whole.resize(area.iov_len);
  set_registers(tid, NT_X86_XSTATE, whole.data(), whole.size(), kOperation);
}

}  // namespace

void add_lasting_state(const ThreadImage& thread, SetScheduling when, SyscallBatch& batch) {
  batch.add("thread name", SYS_prctl,
            {PR_SET_NAME, BatchArgument::data(batch.put_text(thread.name))});
  batch.add("tid address", SYS_set_tid_address, {thread.clear_child_tid});
  batch.add("robust list", SYS_set_robust_list, {thread.robust_list, sizeof(robust_list_head)});
  const stack_t stack{.ss_sp = reinterpret_cast<void*>(thread.altstack.sp),  // NOLINT: replica's
                      .ss_flags = thread.altstack.flags,
                      .ss_size = thread.altstack.size};
  batch.add("alternate signal stack", SYS_sigaltstack,
            {BatchArgument::data(batch.put_value(stack)), 0});
  add_scheduling(thread.scheduling, when, batch);
}

void add_rseq(const ThreadImage& thread, SyscallBatch& batch) {
  if (thread.rseq.pointer == 0) return;
  batch.add("rseq", SYS_rseq,
            {thread.rseq.pointer, thread.rseq.size, thread.rseq.flags, thread.rseq.signature});
}

bool lasts_alike(const ThreadImage& one, const ThreadImage& other) {
  return one.name == other.name && one.clear_child_tid == other.clear_child_tid &&
         one.robust_list == other.robust_list && one.altstack == other.altstack &&
         one.rseq == other.rseq && one.scheduling == other.scheduling;
}

void add_removal(const ThreadImage& thread, SyscallBatch& batch) {
  constexpr int kUnregister = 1;  // RSEQ_FLAG_UNREGISTER
  if (thread.rseq.pointer != 0) {
    batch.add("rseq", SYS_rseq,
              {thread.rseq.pointer, thread.rseq.size, kUnregister, thread.rseq.signature}, false);
  }
  batch.add("tid address", SYS_set_tid_address, {0});
  batch.add("robust list", SYS_set_robust_list, {0, sizeof(robust_list_head)});
}

void add_passing_state(const ProcessImage& process, const ThreadImage& thread,
                       const Credentials* current, SyscallBatch& batch) {
  add_pending(process, thread, batch);
  const bool same = current != nullptr && *current == thread.credentials;
  if (!same) add_credentials(thread.credentials, batch);
  // After the credentials, whose change clears it (commit_creds in kernel/cred.c).
  if (!same || thread.parent_death_signal != 0) {
    batch.add("parent-death signal", SYS_prctl, {PR_SET_PDEATHSIG, thread.parent_death_signal});
  }
}

void add_thread_state(const ProcessImage& process, const ThreadImage& thread, SetScheduling when,
                      SyscallBatch& batch) {
  add_lasting_state(thread, when, batch);
  add_rseq(thread, batch);
  add_passing_state(process, thread, nullptr, batch);
}

bool is_given_last(const SignalInfo& info) {
  return signal_of(info) == SIGTRAP || signal_of(info) == SIGSTOP;
}

void apply_scheduling(pid_t tid, const Scheduling& scheduling) {
  const Bytes& affinity = scheduling.affinity;
  // Without any of its CPUs here it may use all.
  if (!affinity.empty() &&
      ::syscall(SYS_sched_setaffinity, tid, affinity.size(), affinity.data()) != 0) {
    const Bytes all(affinity.size(), 0xFF);
    (void)::syscall(SYS_sched_setaffinity, tid, all.size(), all.data());
  }
  const SchedulingAttributes wanted = attributes_of(scheduling);
  const SchedulingAttributes ordinary;
  if (::syscall(SYS_sched_setattr, tid, &wanted, 0) != 0 &&
      ::syscall(SYS_sched_setattr, tid, &ordinary, 0) != 0) {
    throw SysError::from_errno("set the scheduling policy", on_pid(tid));
  }
}

void apply_registers(pid_t tid, const ThreadImage& thread) {
  user_regs_struct registers = thread.registers;
  const bool in_call = static_cast<int64_t>(registers.orig_rax) >= 0;
  // A restart block lives in the kernel and is not carried over: the call starts anew.
  if (in_call && static_cast<int64_t>(registers.rax) == kRestartBlock) {
    registers.rax = static_cast<uint64_t>(kRestartNoHandler);
  }
  set_registers(tid, NT_PRSTATUS, &registers, sizeof registers, "set registers");
  set_xstate(tid, thread.xstate);
  if (::ptrace(PTRACE_SETSIGMASK, tid, sizeof thread.blocked_signals, &thread.blocked_signals) !=
      0) {
    throw SysError::from_errno("set signal mask", on_pid(tid));
  }
}

}  // namespace replpage
