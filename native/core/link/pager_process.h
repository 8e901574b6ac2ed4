// Starts and ends the pager of a group, from inside a multi-threaded process.
#pragma once

#include <sys/types.h>

#include <string>

#include "core/base/unique_fd.h"
#include "core/channel/channel.h"

namespace replpage {

// A child of ours with only its channel open. It ends by itself when the channel is closed.
class PagerProcess {
 public:
  // Throws SysError (no executable). Takes a millisecond or two.
  static PagerProcess start(const std::string& executable);
  PagerProcess(PagerProcess&&) noexcept = default;
  PagerProcess& operator=(PagerProcess&& other) noexcept;
  PagerProcess(const PagerProcess&) = delete;
  PagerProcess& operator=(const PagerProcess&) = delete;
  // Kills it. Waits for nothing: one that hangs in the kernel is reaped when it is let go.
  ~PagerProcess();

  [[nodiscard]] Channel& channel() { return channel_; }
  [[nodiscard]] int fd() const { return channel_.fd(); }
  [[nodiscard]] pid_t pid() const { return pid_; }

 private:
  PagerProcess(pid_t pid, UniqueFd pidfd, Channel channel)
      : pid_(pid), pidfd_(std::move(pidfd)), channel_(std::move(channel)) {}
  void end() noexcept;

  pid_t pid_ = 0;
  UniqueFd pidfd_;
  Channel channel_;
};

}  // namespace replpage
