// Looks whether a group could run on this machine, before it is ended on another one.
#pragma once

#include <string>

#include "core/image/group_image.h"

namespace replpage {

// Why not: an address that its sockets need is in use here, or is not here and is not the one that
// comes along (`service_address`, may be empty). Empty: nothing was found.
std::string why_not_here(const GroupImage& image, const std::string& service_address);

}  // namespace replpage
