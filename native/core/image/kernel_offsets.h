// Where this kernel keeps what the reader wants.
#pragma once

#include "core/image/btf_types.h"

namespace replpage {

// Throws SysError(ENOENT) when a member is missing: the kernel is built otherwise than we know.
struct KernelOffsets {
  explicit KernelOffsets(const BtfTypes& types);

  struct {
    uint32_t bytes = 0;  // all that follow lie within the first so many bytes
    uint32_t memory, directories, signals, actions, death_signal, tid_address, credentials, name,
        stack_pointer, stack_size, stack_flags, nice, policy, priority, flags, timer_slack, cpus,
        personality;
  } task{};
  struct {
    uint32_t bytes = 0;
    uint32_t start_code, end_code, start_data, end_data, start_brk, brk, start_stack, arg_start,
        arg_end, env_start, env_end, vector, default_flags, membarrier, flags, executable;
  } memory{};
  struct {
    uint32_t bytes = 0;
    BtfMember subreaper;
    uint32_t posix_timers, real_expires, real_state, real_interval, cpu_timers, user_time,
        system_time, limits, oom_score_adj, groups;
    bool timers_ring;
  } signals{};
  struct {
    uint32_t bytes = 0;
    uint32_t next, id, clock, notify, status, interval, expires, state, base, cpu_expires;
    bool status_is_flag;
  } timer{};
  uint32_t semaphore_undos = 0;  // of task_struct: pointer to a sem_undo_list
  uint32_t undo_list = 0;        // of sem_undo_list
  uint32_t actions = 0;          // of sighand_struct
  struct {
    uint32_t bytes = 0;
    uint32_t mode_mask, root, working;
  } directories{};
  uint32_t securebits = 0;  // of cred
  uint32_t base_clock = 0;  // of hrtimer_clock_base

 private:
  void find_task(const BtfTypes& types);
  void find_memory(const BtfTypes& types);
  void find_signals(const BtfTypes& types);
  void find_timer(const BtfTypes& types);
  void find_directories(const BtfTypes& types);
};

}  // namespace replpage
