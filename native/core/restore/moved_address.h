// The service address of a group that comes to this machine with the group, and the established TCP
// connections that come along.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "core/address/service_address.h"
#include "core/address/traffic_drop.h"
#include "core/base/unique_fd.h"
#include "core/image/descriptor_image.h"
#include "core/image/tcp_connection.h"

namespace replpage {

// From its making on the address is here, and its packets are swallowed: the kernel would answer
// them with resets as long as their sockets are not there. In the network namespace of the calling
// thread.
class MovedAddress {
 public:
  // Throws BadServiceAddress, SysError (ENODEV, EPERM; see TrafficDrop).
  explicit MovedAddress(const std::string& address);
  // Gives the address up again where it was not here before and stay() was not called.
  ~MovedAddress();
  MovedAddress(const MovedAddress&) = delete;
  MovedAddress& operator=(const MovedAddress&) = delete;

  // The connection of an image that has all of it, not alive yet. The image and the socket must
  // live until open(). Throws SysError, FormatError.
  UniqueFd connection(const OpenFileImage& file);

  // Packets pass, neighbours are told, connections live: one that cannot ends as any may.
  void open() noexcept;

  // The group runs.
  void stay() { stays_ = true; }

 private:
  struct Waiting {
    int socket;  // borrowed
    TcpConnection connection;
    const SocketState* state;
  };

  ServiceAddress address_;
  TrafficDrop drop_;
  const bool taken_;  // false: it was here already
  std::vector<Waiting> waiting_;
  bool stays_ = false;
};

// null: the group has none (empty text), or it cannot be had here. The replica runs all the same,
// unreached; the daemon finds out why, and tries again.
std::unique_ptr<MovedAddress> bring_address(const std::string& address);

}  // namespace replpage
