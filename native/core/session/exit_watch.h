// Notices the end of a process that nobody traces.
#pragma once

#include <sys/types.h>

#include <functional>
#include <optional>
#include <thread>

#include "core/base/unique_fd.h"

namespace replpage {

class ExitWatch {
 public:
  // `ended` is called once, on a thread of the watch's own, with the wait status where the kernel
  // tells it (PIDFD_GET_INFO, Linux 6.15). Throws SysError (ESRCH: no such process).
  ExitWatch(pid_t pid, std::function<void(std::optional<int> wait_status)> ended);
  ~ExitWatch();
  ExitWatch(const ExitWatch&) = delete;
  ExitWatch& operator=(const ExitWatch&) = delete;

 private:
  void watch();

  pid_t pid_;
  UniqueFd pidfd_;
  UniqueFd stop_;
  std::function<void(std::optional<int>)> ended_;
  std::thread thread_;
};

}  // namespace replpage
