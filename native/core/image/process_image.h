// Kernel state of one process at one epoch.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "core/base/archive.h"
#include "core/image/mapping_image.h"
#include "core/image/thread_image.h"

namespace replpage {

// struct sigaction of the kernel (not of libc), for signals 1..64.
struct SignalAction {
  uint64_t handler = 0, flags = 0, restorer = 0, mask = 0;
  template <class A>
  void visit(A& a) {
    a(handler, flags, restorer, mask);
  }
  bool operator==(const SignalAction&) const = default;
};

struct IntervalTimer {  // getitimer(2), microseconds
  uint64_t value_us = 0, interval_us = 0;
  template <class A>
  void visit(A& a) {
    a(value_us, interval_us);
  }
};

struct PosixTimer {  // /proc/PID/timers and timer_gettime(2)
  int32_t id = 0, clock = 0, notify = 0, signal = 0, thread = 0;
  uint64_t signal_value = 0, value_ns = 0, interval_ns = 0;
  int32_t overrun = 0;
  template <class A>
  void visit(A& a) {
    a(id, clock, notify, signal, thread, signal_value, value_ns, interval_ns, overrun);
  }
};

struct ResourceLimit {
  uint64_t soft = 0, hard = 0;
  template <class A>
  void visit(A& a) {
    a(soft, hard);
  }
  bool operator==(const ResourceLimit&) const = default;
};

// prctl_mm_map of prctl(2), without the vectors and the executable.
struct MemoryLayout {
  uint64_t start_code = 0, end_code = 0, start_data = 0, end_data = 0, start_brk = 0, brk = 0,
           start_stack = 0, arg_start = 0, arg_end = 0, env_start = 0, env_end = 0;
  std::vector<uint64_t> auxv;
  template <class A>
  void visit(A& a) {
    a(start_code, end_code, start_data, end_data, start_brk, brk, start_stack, arg_start, arg_end,
      env_start, env_end, auxv);
  }
  bool operator==(const MemoryLayout&) const = default;
};

// What job control has done to a process that its parent or the replica must be told of.
enum class JobControl : uint8_t {
  kRuns = 0,
  kStopped = 1,    // the replica must get a SIGSTOP
  kContinued = 2,  // and its parent has not waited for that yet
};

struct ProcessImage {
  int32_t pid = 0;                         // in the group's own PID namespace
  int32_t parent = 0;                      // pid within the group, 0 for the root
  int32_t process_group = 0, session = 0;  // may name a process outside the group
  int32_t exit_signal = 17;                // sent to the parent; SIGCHLD
  std::string executable, working_directory, root_directory;
  MemoryLayout layout;
  std::vector<MappingImage> mappings;  // ascending
  std::vector<ThreadImage> threads;    // leader first
  std::vector<SignalAction> actions;   // 64, for signals 1..64
  std::vector<SignalInfo> pending;     // the process's shared queue, in order
  std::array<IntervalTimer, 3> interval_timers{};
  std::vector<PosixTimer> posix_timers;
  std::vector<ResourceLimit> limits;  // RLIMIT_* in number order, 16
  uint32_t file_mode_mask = 0;        // umask
  uint32_t personality = 0;
  int32_t oom_score_adj = 0;
  uint32_t core_dump_filter = 0x33;  // /proc/PID/coredump_filter, see core(5)
  int32_t dumpable = 1;
  bool child_subreaper = false;
  bool thp_disabled = false;
  uint32_t file_table = 0;          // position in GroupImage::file_tables
  uint32_t mlock_future = 0;        // MCL_* of mlockall(2)
  uint32_t membarrier = 0;          // MEMBARRIER_CMD_GET_REGISTRATIONS of membarrier(2)
  uint32_t deny_write_execute = 0;  // PR_GET_MDWE
  JobControl job_control = JobControl::kRuns;
  uint64_t change_mark = 0;  // as of ThreadImage
  uint64_t captured_ns = 0;  // CLOCK_MONOTONIC of the capturing machine
  template <class A>
  void visit(A& a) {
    a(pid, parent, process_group, session, exit_signal, executable, working_directory,
      root_directory, layout, mappings, threads, actions, pending, interval_timers, posix_timers,
      limits, file_mode_mask, personality, oom_score_adj, core_dump_filter, dumpable,
      child_subreaper, thp_disabled, file_table, mlock_future, membarrier, deny_write_execute,
      job_control, change_mark, captured_ns);
  }
};

// A process that has ended but was not waited for by its parent in the group.
struct ZombieImage {
  int32_t pid = 0, parent = 0, process_group = 0, session = 0;
  int32_t wait_status = 0;
  std::string name;
  template <class A>
  void visit(A& a) {
    a(pid, parent, process_group, session, wait_status, name);
  }
};

}  // namespace replpage
