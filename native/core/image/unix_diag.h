// What only sock_diag(7) tells about a UNIX socket: its peer, its queue lengths, its shutdown
// state.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <string>

#include "core/base/unique_fd.h"

namespace replpage {

struct UnixSocketFacts {
  std::optional<uint32_t> peer;  // inode; 0: the peer was closed or was not accepted yet
  bool shut_read = false, shut_write = false;
  uint32_t receive_queue = 0;  // bytes; of a listening socket: connections not accepted yet
  uint32_t backlog = 0;        // of a listening socket
};

// Asks within one network namespace.
class UnixDiag {
 public:
  // Opens the netlink socket in the network namespace of the process: enters it for a moment with
  // the calling thread when it is not the caller's own. Throws SysError.
  explicit UnixDiag(pid_t host_pid);

  // nullopt: no such socket here. Throws SysError.
  std::optional<UnixSocketFacts> find(uint32_t inode);

 private:
  UniqueFd netlink_;
  uint32_t sequence_ = 0;
};

}  // namespace replpage
