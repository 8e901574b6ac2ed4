// The established TCP connections of a group that goes to another machine with its service address.
#pragma once

#include <string>
#include <vector>

#include "core/address/service_address.h"
#include "core/address/traffic_drop.h"
#include "core/base/unique_fd.h"
#include "core/group/group_capture.h"

namespace replpage {

// From its making on the packets of the address are swallowed here, and the image holds all there
// is to know of each connection: another machine goes on with it where this one stopped. The
// program's own sockets stay as they are until fall_silent(): whatever becomes of us, it runs on
// with its connections.
class MovingConnections {
 public:
  // Of a group that stands still, in the network namespace of the calling thread. A connection that
  // cannot go, because one side is closing it or because too much is queued in it, is left out, and
  // is reset there. Throws BadServiceAddress, SysError (see TrafficDrop).
  MovingConnections(const std::string& address, GroupCapture& capture, GroupImage& image);
  MovingConnections(const MovingConnections&) = delete;
  MovingConnections& operator=(const MovingConnections&) = delete;

  // Nobody will be told that these sockets are closed (TCP_REPAIR of tcp(7)). To be called at the
  // last moment before the program ends. Packets are swallowed until this is destroyed, before
  // which the sockets must be closed.
  void fall_silent() noexcept;

 private:
  void take(UniqueFd socket, OpenFileImage& file);
  [[nodiscard]] bool leads_to_address(const OpenFileImage& file) const;

  ServiceAddress address_;
  TrafficDrop drop_;
  std::vector<UniqueFd> sockets_;  // the program's own
};

// The group goes to another machine: that takes the address. What goes wrong is mended by the
// daemon, which looks after it.
void give_up_quietly(const std::string& address) noexcept;

}  // namespace replpage
