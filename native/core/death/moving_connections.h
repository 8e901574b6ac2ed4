// The established TCP connections of a group that goes to another machine with its service address.
#pragma once

#include <string>
#include <vector>

#include "core/address/service_address.h"
#include "core/address/traffic_drop.h"
#include "core/base/unique_fd.h"
#include "core/group/group_capture.h"
#include "core/image/tcp_connection.h"

namespace replpage {

// From its making on the packets of the address are swallowed here, and the image holds all there
// is to know of each connection: another machine goes on with it where this one stopped, and nobody
// is told that it ends here (TCP_REPAIR of tcp(7), net/ipv4/tcp.c).
class MovingConnections {
 public:
  // Of a group that stands still, in the network namespace of the calling thread. A connection that
  // cannot go, because one side is closing it or because too much is queued in it, is left out, and
  // is reset there. Throws BadServiceAddress, SysError (see TrafficDrop).
  MovingConnections(const std::string& address, GroupCapture& capture, GroupImage& image);
  // The connections live on here, unless give_up() was called.
  ~MovingConnections();
  MovingConnections(const MovingConnections&) = delete;
  MovingConnections& operator=(const MovingConnections&) = delete;

  // The group runs here no more, and the address is another machine's from now on. Its packets are
  // swallowed until this is destroyed, before which the old sockets must be closed. Throws
  // SysError.
  void give_up();

 private:
  void take(UniqueFd socket, OpenFileImage& file);
  [[nodiscard]] bool leads_to_address(const OpenFileImage& file) const;

  struct Taken {
    UniqueFd socket;  // the program's own, in repair mode
    TcpConnection connection;
  };

  ServiceAddress address_;
  TrafficDrop drop_;
  std::vector<Taken> taken_;
  bool given_up_ = false;
};

}  // namespace replpage
