// Swallows what is sent to an address and from it while nobody could answer for it: a packet for a
// connection whose socket is not there yet would be answered with a reset, which ends it.
#pragma once

#include <cstdint>
#include <string>

#include "core/address/netlink.h"
#include "core/address/service_address.h"

namespace replpage {

// In force while this lives. Neighbour discovery and ICMP pass, all else is lost without a word;
// TCP sends it again. Nothing of it is left when the process that made it dies, at whatever
// instant: it is a table of nf_tables that the kernel owns to our socket (NFT_TABLE_F_OWNER,
// Linux 5.12) and removes with it. See docs/decisions/007 for what else was tried.
class TrafficDrop {
 public:
  // In the network namespace of the calling thread, from the return on. Throws SysError: EPERM;
  // EOPNOTSUPP or EPROTONOSUPPORT where the kernel has no nf_tables, or none of that kind.
  explicit TrafficDrop(const ServiceAddress& address);
  ~TrafficDrop();
  TrafficDrop(const TrafficDrop&) = delete;
  TrafficDrop& operator=(const TrafficDrop&) = delete;

  // Packets pass again when it returns, 0.3 ms later. The destructor does the same, and then waits
  // 10 to 20 ms until the kernel has forgotten the table. Idempotent.
  void lift() noexcept;

  // Of the table, as `nft list tables` shows it.
  [[nodiscard]] const std::string& table() const { return table_; }

 private:
  NetlinkSocket netlink_;
  uint8_t family_ = 0;
  std::string table_;
  bool lifted_ = false;
};

}  // namespace replpage
