// Kernel state of one thread at one epoch.
#pragma once

#include <sys/user.h>

#include <array>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "core/base/archive.h"

namespace replpage {

// siginfo_t as the kernel lays it out (128 bytes on x86-64).
using SignalInfo = std::array<uint8_t, 128>;

inline int32_t signal_of(const SignalInfo& info) {
  int32_t signal = 0;
  std::memcpy(&signal, info.data(), sizeof signal);
  return signal;
}

struct AltStack {
  uint64_t sp = 0;
  uint64_t size = 0;
  int32_t flags = 2;  // SS_DISABLE
  template <class A>
  void visit(A& a) {
    a(sp, size, flags);
  }
  bool operator==(const AltStack&) const = default;
};

struct Credentials {
  std::array<uint32_t, 4> uids{};  // real, effective, saved, file system
  std::array<uint32_t, 4> gids{};
  std::vector<uint32_t> groups;
  uint64_t cap_inheritable = 0, cap_permitted = 0, cap_effective = 0, cap_bounding = 0,
           cap_ambient = 0;
  uint32_t securebits = 0;
  bool no_new_privs = false;
  template <class A>
  void visit(A& a) {
    a(uids, gids, groups, cap_inheritable, cap_permitted, cap_effective, cap_bounding, cap_ambient,
      securebits, no_new_privs);
  }
  bool operator==(const Credentials&) const = default;
};

// sched_getattr(2), ioprio_get(2), sched_getaffinity(2), /proc/PID/timerslack_ns.
struct Scheduling {
  uint32_t policy = 0;
  uint64_t flags = 0;
  int32_t nice = 0;
  uint32_t priority = 0;
  uint64_t runtime_ns = 0, deadline_ns = 0, period_ns = 0;
  int32_t io_priority = 0;
  uint64_t timer_slack_ns = 50'000;
  Bytes affinity;  // CPU mask as sched_setaffinity takes it
  template <class A>
  void visit(A& a) {
    a(policy, flags, nice, priority, runtime_ns, deadline_ns, period_ns, io_priority,
      timer_slack_ns, affinity);
  }
  bool operator==(const Scheduling&) const = default;
};

// PTRACE_GET_RSEQ_CONFIGURATION; pointer 0 when not registered.
struct RseqRegistration {
  uint64_t pointer = 0;
  uint32_t size = 0, signature = 0, flags = 0;
  template <class A>
  void visit(A& a) {
    a(pointer, size, signature, flags);
  }
  bool operator==(const RseqRegistration&) const = default;
};

struct ThreadImage {
  int32_t tid = 0;       // in the group's own PID namespace
  int32_t host_tid = 0;  // as the capturing machine's daemon sees it; no replica uses it
  user_regs_struct registers{};
  Bytes xstate;  // NT_X86_XSTATE, whole
  uint64_t blocked_signals = 0;
  AltStack altstack;
  uint64_t robust_list = 0, robust_list_size = 0;
  RseqRegistration rseq;
  uint64_t clear_child_tid = 0;
  std::string name;  // at most 15 bytes
  Scheduling scheduling;
  Credentials credentials;
  std::vector<SignalInfo> pending;  // the thread's own queue, in order
  int32_t parent_death_signal = 0;
  uint64_t change_mark = 0;  // differs when what is read seldom has changed; 0: not known
  template <class A>
  void visit(A& a) {
    a(tid, host_tid, registers, xstate, blocked_signals, altstack, robust_list, robust_list_size,
      rseq, clear_child_tid, name, scheduling, credentials, pending, parent_death_signal,
      change_mark);
  }
};

}  // namespace replpage
