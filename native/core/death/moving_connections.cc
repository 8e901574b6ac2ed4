#include "core/death/moving_connections.h"

#include <algorithm>
#include <utility>

#include "core/address/interface_address.h"
#include "core/base/archive.h"
#include "core/base/sys_error.h"
#include "core/image/descriptor_probe.h"
#include "core/image/socket_capture.h"

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

MovingConnections::~MovingConnections() {
  if (given_up_) return;
  // Before the packets pass again: the kernel would not answer them in repair mode.
  for (const Taken& one : taken_) {
    try {
      stay_where_it_is(one.socket.get(), one.connection);
    } catch (const SysError&) {  // it ends as any connection may
    }
  }
}

void MovingConnections::give_up() {
  given_up_ = true;
  taken_.clear();
  (void)give_up_address(address_);
}

void MovingConnections::take(UniqueFd socket, OpenFileImage& file) {
  try {
    if (!take_tcp_connection(socket.get(), file, kQueueBytesMax)) return;
  } catch (const SysError&) {
    return;
  }
  Taken taken{std::move(socket), {}};
  Reader reader(file.socket.queue.front());
  reader(taken.connection);
  taken_.push_back(std::move(taken));
}

bool MovingConnections::leads_to_address(const OpenFileImage& file) const {
  if (file.kind != OpenFileKind::kTcpSocket || !file.socket.connected) return false;
  return address_.has(file.socket.local_address);
}

}  // namespace replpage
