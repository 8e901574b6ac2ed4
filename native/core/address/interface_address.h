// A service address on its interface: looked for, put there, taken away. All calls act in the
// network namespace of the thread that calls.
#pragma once

#include <optional>
#include <string>

#include "core/address/service_address.h"

namespace replpage {

// IFA_PROTO (Linux 5.18) of what we have put there: `ip -d address` shows it as such. Nobody else
// is known to use it (the kernel: 1 to 3).
constexpr uint8_t kAddressProtocol = 82;

// An address as an interface has it.
struct FoundAddress {
  bool ours = false;
  unsigned prefix = 0;
  unsigned interface_index = 0;
  std::string where;  // 10.0.0.9/24 on eth0
};

// On whatever interface and with whatever prefix it is. Throws SysError: ENODEV, where its own
// interface is not there.
std::optional<FoundAddress> find_address(const ServiceAddress& address);

// Puts it there; true: it is new, false: it was there already, by us. Throws SysError: EEXIST,
// naming where, when somebody else has configured it anywhere on this machine; ENODEV: no such
// interface; EPERM; EOPNOTSUPP: this kernel (before 5.18) cannot tell ours from an operator's.
bool take_address(const ServiceAddress& address);

// Takes it away where it is ours; false: there was nothing of ours. Somebody else's stays, and so
// do the other addresses of its network, which the kernel would take away with it. Throws SysError.
bool give_up_address(const ServiceAddress& address);

}  // namespace replpage
