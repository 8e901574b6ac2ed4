// Starts one of our own programs from inside a multi-threaded process, with nothing of us but its
// end of a channel.
#pragma once

#include <sys/types.h>

#include <string>

#include "core/base/unique_fd.h"

namespace replpage {

struct ChannelChild {
  pid_t pid = 0;     // nobody else reaps it
  UniqueFd channel;  // our end: SOCK_SEQPACKET
};

// The program gets `option` and the number of its end as arguments, /dev/null as standard streams,
// no other descriptor, no environment but LC_ALL, and the usual treatment of signals. Throws
// SysError (no executable).
ChannelChild start_with_channel(const std::string& executable, const char* option);

}  // namespace replpage
