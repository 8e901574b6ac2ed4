// Descriptors whose content says nothing but that there is something to look at.
#pragma once

#include <signal.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <cstdint>

#include "core/base/sys_error.h"
#include "core/base/unique_fd.h"

namespace replpage {

// Blocks SIGCHLD, which becomes readable instead. Throws SysError, as the next.
inline UniqueFd child_signals() {
  sigset_t mask;
  ::sigemptyset(&mask);
  ::sigaddset(&mask, SIGCHLD);
  ::sigprocmask(SIG_BLOCK, &mask, nullptr);
  UniqueFd fd(::signalfd(-1, &mask, SFD_CLOEXEC | SFD_NONBLOCK));
  if (!fd.valid()) throw SysError::from_errno("signalfd");
  return fd;
}

inline UniqueFd make_eventfd() {
  UniqueFd fd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!fd.valid()) throw SysError::from_errno("eventfd");
  return fd;
}

inline void swallow(int fd) {
  uint8_t bytes[512];
  (void)::read(fd, bytes, sizeof bytes);
}

}  // namespace replpage
