// Reads the state of one socket from a short-lived duplicate.
#pragma once

#include <string>

#include "core/image/descriptor_image.h"
#include "core/image/unix_diag.h"

namespace replpage {

struct SocketFinding {
  std::string refused;   // why it cannot be replicated; empty: it can
  bool settled = false;  // connected or listening: nothing of it changes that a replica would need
};

// Fills kind and socket of `file`, whose object is the socket's inode, all but peer_object, queue
// and `outside`. Throws SysError.
SocketFinding read_socket(int socket, OpenFileImage& file);

// Path of a UNIX address; empty for an abstract or unnamed one.
std::string unix_path_of(const Bytes& address);

// Shutdown state, backlog and the peer's inode (0: it has none, being closed or not accepted yet).
void read_unix_facts(const UnixSocketFacts& facts, OpenFileImage& file);

// Copies what a UNIX socket has received and not read, without consuming it. False: descriptors are
// in flight in it, or it holds more than `bytes_max`. Throws SysError.
bool peek_unix_queue(int socket, size_t bytes_max, SocketState& state);

// Takes the connection of a TCP socket, for a replica on a node to which its address moves along:
// into `queue`, as one piece, and `options`. `file` comes from read_socket(). On what
// take_connection() asks for and does, see there. False: it is no established connection, and left
// as it was. Throws SysError.
bool take_tcp_connection(int socket, OpenFileImage& file, size_t bytes_max);

}  // namespace replpage
