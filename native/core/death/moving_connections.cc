#include "core/death/moving_connections.h"

#include <exception>
#include <utility>

#include "core/address/interface_address.h"
#include "core/base/sys_error.h"
#include "core/image/descriptor_probe.h"
#include "core/image/socket_capture.h"
#include "core/image/tcp_connection.h"

namespace replpage {

MovingConnections::MovingConnections(const std::string& address, GroupCapture& capture,
                                     GroupImage& image)
    : address_(parse_service_address(address)), drop_(address_) {
  std::vector<UniqueFd> files = capture.take_descriptors(image);
  for (size_t i = 0; i < files.size(); ++i) {
    OpenFileImage& file = image.open_files.at(i);
    if (files[i].valid() && leads_to_address(file)) take(std::move(files[i]), file);
  }
}

void MovingConnections::fall_silent() noexcept {
  for (const UniqueFd& socket : sockets_) replpage::fall_silent(socket.get());
  sockets_.clear();
}

void MovingConnections::take(UniqueFd socket, OpenFileImage& file) {
  try {
    if (!take_tcp_connection(socket.get(), file, kQueueBytesMax)) return;
  } catch (const SysError&) {
    return;
  }
  sockets_.push_back(std::move(socket));
}

bool MovingConnections::leads_to_address(const OpenFileImage& file) const {
  if (file.kind != OpenFileKind::kTcpSocket || !file.socket.connected) return false;
  return address_.has(file.socket.local_address);
}

void give_up_quietly(const std::string& address) noexcept {
  try {
    (void)give_up_address(parse_service_address(address));
  } catch (const std::exception&) {
  }
}

}  // namespace replpage
