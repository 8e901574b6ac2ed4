#include "core/restore/moved_address.h"

#include <sys/socket.h>

#include <exception>

#include "core/address/announcement.h"
#include "core/address/interface_address.h"
#include "core/base/sys_error.h"
#include "core/restore/open_files.h"

namespace replpage {

MovedAddress::MovedAddress(const std::string& address)
    : address_(parse_service_address(address)), drop_(address_), taken_(take_address(address_)) {}

MovedAddress::~MovedAddress() {
  if (stays_ || !taken_) return;
  try {
    (void)give_up_address(address_);
  } catch (const std::exception&) {  // shown as this node's own by the daemon
  }
}

UniqueFd MovedAddress::connection(const OpenFileImage& file) {
  TcpConnection connection;
  UniqueFd made = recreate::connection(file.socket, connection);
  waiting_.push_back({made.get(), std::move(connection), &file.socket});
  return made;
}

void MovedAddress::open() noexcept {
  try {
    const AddressAnnouncer announcer(address_);  // once; the daemon goes on
  } catch (const std::exception&) {
  }
  drop_.lift();
  for (const Waiting& one : waiting_) {
    try {
      recreate::revive(one.socket, one.connection, *one.state);
    } catch (const SysError&) {  // part of what it had to send is lost: both sides are told
      const sockaddr none{.sa_family = AF_UNSPEC, .sa_data = {}};
      (void)::connect(one.socket, &none, sizeof none);
    }
  }
  waiting_.clear();
}

std::unique_ptr<MovedAddress> bring_address(const std::string& address) {
  if (address.empty()) return nullptr;
  try {
    return std::make_unique<MovedAddress>(address);
  } catch (const SysError&) {
  } catch (const BadServiceAddress&) {
  }
  return nullptr;
}

}  // namespace replpage
