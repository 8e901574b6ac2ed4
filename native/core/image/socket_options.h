// Options of sockets that a program may have set: read at capture, set again at restore.
#pragma once

#include <vector>

#include "core/image/descriptor_image.h"

namespace replpage {

// When an option has to be set again.
enum class OptionTime : uint8_t {
  kBeforeBind,  // decides whether and how an address can be bound
  kAfterBind,
};

// Options of the socket that differ from those of a new socket of the same domain, type and
// protocol. Throws SysError.
std::vector<SocketOption> read_socket_options(int socket, const SocketState& state);

// Sets options of the image that belong to `time`. Throws SysError naming the option; options this
// kernel lacks cannot be in an image of the same machine.
void set_socket_options(int socket, const std::vector<SocketOption>& options, OptionTime time);

}  // namespace replpage
