#include "core/restore/rehearsal.h"

#include <netinet/in.h>

#include <optional>

#include "core/address/interface_address.h"
#include "core/base/sys_error.h"
#include "core/restore/open_files.h"

namespace replpage {
namespace {

// Without the address, which others have until it comes.
std::string why_not_bound(const OpenFileImage& file, bool at_service_address) {
  OpenFileImage tried = file;
  tried.socket.listening = false;
  if (at_service_address) return {};
  try {
    if (file.kind == OpenFileKind::kUdpSocket) {
      tried.socket.connected = false;
      (void)recreate::udp(tried);
    } else {
      (void)recreate::tcp(tried);
    }
  } catch (const SysError& error) {
    return error.what();
  }
  return {};
}

std::string why_not_taken(const ServiceAddress& address) {
  try {
    const auto found = find_address(address);
    if (found && !found->ours) return found->where + " is not replpage's";
  } catch (const SysError& error) {
    return error.what();
  }
  return {};
}

}  // namespace

std::string why_not_here(const GroupImage& image, const std::string& service_address) {
  std::optional<ServiceAddress> address;
  if (!service_address.empty()) {
    try {
      address = parse_service_address(service_address);
    } catch (const BadServiceAddress& bad) {
      return bad.what();
    }
    std::string why = why_not_taken(*address);
    if (!why.empty()) return why;
  }
  for (const OpenFileImage& file : image.open_files) {
    const bool is_udp = file.kind == OpenFileKind::kUdpSocket;
    if (file.kind != OpenFileKind::kTcpSocket && !is_udp) continue;
    if (file.socket.local_address.empty() || (file.socket.connected && !is_udp)) continue;
    const bool comes = address && address->has(file.socket.local_address);
    std::string why = why_not_bound(file, comes);
    if (!why.empty()) return why;
  }
  return {};
}

}  // namespace replpage
