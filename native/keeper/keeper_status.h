// What a keeper says of itself and its group to whoever asks on its socket.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>

#include "core/uffd/fault_server.h"

namespace replpage {

struct KeeperStatus {
  const char* state = "standby";  // promoted, ended
  std::string name;
  pid_t pid = 0, host_pid = 0;  // of the root
  uint64_t epoch = 0, generation = 0;
  uint64_t cold_pages = 0;
  FaultServer::Figures faults;
  bool exited = false;  // the root
  int status = 0;       // as wait(2) gives it
  std::string reason;   // why the group was killed, when we did it
};

// One JSON object in one line, with what the processes of the namespace take of RAM at the moment:
// see docs/formats/control-sockets.md.
std::string to_json(const KeeperStatus& status);

}  // namespace replpage
