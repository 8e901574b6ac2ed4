// /proc/TID/status and /proc/PID/stat, parsed once.
#pragma once

#include <sys/types.h>

#include <array>
#include <cstdint>
#include <optional>
#include <vector>

#include "core/image/process_image.h"

namespace replpage {

// What replpage needs of /proc/TID/status (proc_pid_status(5)).
struct TaskStatus {
  std::vector<int32_t> thread_ids;         // NSpid: outermost PID namespace first
  int32_t process_group = 0, session = 0;  // in the innermost namespace, 0 when outside of it
  int32_t tracer = 0;                      // thread id of the tracer, 0: none
  int32_t seccomp_mode = 0;
  uint32_t file_mode_mask = 0;
  bool kernel_thread = false;
  bool has_memory = false;
  bool thp_disabled = false;
  bool shadow_stack = false;
  char state = '?';
  uint64_t ignored_signals = 0, caught_signals = 0;
  Credentials credentials;  // without securebits
};

// `task` is a thread or process id as we see it. nullopt: gone. Throws SysError.
std::optional<TaskStatus> read_task_status(pid_t task);

// What replpage needs of /proc/PID/stat (proc_pid_stat(5)).
struct TaskStat {
  uint64_t flags = 0;  // PF_* of include/linux/sched.h
  int32_t exit_signal = 0;
  MemoryLayout layout;  // without brk and auxv
};

// nullopt: gone. Throws FormatError when the kernel's text has fewer fields than Linux 3.5 gives.
std::optional<TaskStat> read_task_stat(pid_t pid);

}  // namespace replpage
