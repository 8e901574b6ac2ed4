#include "core/image/kernel_offsets.h"

#include <algorithm>

namespace replpage {
namespace {

constexpr uint32_t kNameBytes = 16, kLimitsBytes = 16 * 16, kCpuTimersBytes = 2 * 16,
                   kVectorBytes = 40 * 8, kGroupsBytes = 4 * 8, kPathBytes = 16;

// Looks members of one structure up, and keeps the end of the last one.
class Lookup {
 public:
  Lookup(const BtfTypes& types, const char* structure) : types_(types), structure_(structure) {}
  uint32_t operator()(const char* path, uint32_t bytes = sizeof(uint64_t)) {
    const uint32_t offset = types_.offset(structure_, path);
    end_ = std::max(end_, offset + bytes);
    return offset;
  }
  [[nodiscard]] uint32_t end() const { return end_; }

 private:
  const BtfTypes& types_;
  const char* structure_;
  uint32_t end_ = 0;
};

}  // namespace

KernelOffsets::KernelOffsets(const BtfTypes& types) {
  find_task(types);
  find_memory(types);
  find_signals(types);
  find_timer(types);
  find_directories(types);
  semaphore_undos = types.offset("task_struct", "sysvsem.undo_list");
  undo_list = types.offset("sem_undo_list", "list_proc");
  actions = types.offset("sighand_struct", "action");
  securebits = types.offset("cred", "securebits");
  base_clock = types.offset("hrtimer_clock_base", "clockid");
}

void KernelOffsets::find_task(const BtfTypes& types) {
  Lookup task_struct(types, "task_struct");
  task.memory = task_struct("mm");
  task.directories = task_struct("fs");
  task.signals = task_struct("signal");
  task.actions = task_struct("sighand");
  task.death_signal = task_struct("pdeath_signal");
  task.tid_address = task_struct("clear_child_tid");
  task.credentials = task_struct("cred");
  task.name = task_struct("comm", kNameBytes);
  task.stack_pointer = task_struct("sas_ss_sp");
  task.stack_size = task_struct("sas_ss_size");
  task.stack_flags = task_struct("sas_ss_flags");
  task.nice = task_struct("static_prio");
  task.policy = task_struct("policy");
  task.priority = task_struct("rt_priority");
  task.flags = task_struct("atomic_flags");
  task.timer_slack = task_struct("timer_slack_ns");
  task.cpus = task_struct("cpus_mask");
  task.personality = task_struct("personality");
  task.bytes = task_struct.end();
}

void KernelOffsets::find_memory(const BtfTypes& types) {
  Lookup mm_struct(types, "mm_struct");
  memory.start_code = mm_struct("start_code");
  memory.end_code = mm_struct("end_code");
  memory.start_data = mm_struct("start_data");
  memory.end_data = mm_struct("end_data");
  memory.start_brk = mm_struct("start_brk");
  memory.brk = mm_struct("brk");
  memory.start_stack = mm_struct("start_stack");
  memory.arg_start = mm_struct("arg_start");
  memory.arg_end = mm_struct("arg_end");
  memory.env_start = mm_struct("env_start");
  memory.env_end = mm_struct("env_end");
  memory.vector = mm_struct("saved_auxv", kVectorBytes);
  memory.default_flags = mm_struct("def_flags");
  memory.membarrier = mm_struct("membarrier_state");
  memory.flags = mm_struct("flags");
  memory.executable = mm_struct("exe_file");
  memory.bytes = mm_struct.end();
}

void KernelOffsets::find_signals(const BtfTypes& types) {
  Lookup signal_struct(types, "signal_struct");
  signals.subreaper = types.member("signal_struct", "is_child_subreaper");
  // A ring before Linux 6.15.
  signals.timers_ring = !types.find_member("signal_struct", "posix_timers.first");
  signals.posix_timers =
      signal_struct(signals.timers_ring ? "posix_timers.next" : "posix_timers.first");
  signals.real_expires = signal_struct("real_timer.node.expires");
  signals.real_state = signal_struct("real_timer.state");
  signals.real_interval = signal_struct("it_real_incr");
  signals.cpu_timers = signal_struct("it", kCpuTimersBytes);
  signals.user_time = signal_struct("cputimer.cputime_atomic.utime");
  signals.system_time = signal_struct("cputimer.cputime_atomic.stime");
  signals.limits = signal_struct("rlim", kLimitsBytes);
  signals.oom_score_adj = signal_struct("oom_score_adj");
  signals.groups = signal_struct("pids", kGroupsBytes);
  signals.bytes = signal_struct.end();
}

void KernelOffsets::find_timer(const BtfTypes& types) {
  Lookup k_itimer(types, "k_itimer");
  timer.next = k_itimer("list.next");
  timer.id = k_itimer("it_id");
  timer.clock = k_itimer("it_clock");
  timer.notify = k_itimer("it_sigev_notify");
  // Before Linux 6.13 a flag alone, which is off while a periodic timer waits for its signal, and
  // which timers of CPU time leave alone.
  timer.status_is_flag = !types.find_member("k_itimer", "it_status");
  timer.status = k_itimer(timer.status_is_flag ? "it_active" : "it_status", sizeof(int32_t));
  timer.interval = k_itimer("it_interval");
  timer.expires = k_itimer("it.real.timer.node.expires");
  timer.state = k_itimer("it.real.timer.state");
  timer.base = k_itimer("it.real.timer.base");
  timer.cpu_expires = k_itimer("it.cpu.node.expires");
  timer.bytes = k_itimer.end();
}

void KernelOffsets::find_directories(const BtfTypes& types) {
  Lookup fs_struct(types, "fs_struct");
  directories.mode_mask = fs_struct("umask");
  directories.root = fs_struct("root", kPathBytes);
  directories.working = fs_struct("pwd", kPathBytes);
  directories.bytes = fs_struct.end();
}

}  // namespace replpage
