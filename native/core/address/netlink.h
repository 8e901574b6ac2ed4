// Requests to the kernel over netlink(7): built attribute by attribute, sent, and answered.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>

#include "core/base/archive.h"
#include "core/base/unique_fd.h"

struct nlmsghdr;

namespace replpage {

// One request: a header, a body, attributes.
class NetlinkMessage {
 public:
  NetlinkMessage(uint16_t type, uint16_t flags);

  template <class T>
  NetlinkMessage& body(const T& value) {
    append(&value, sizeof value);
    return *this;
  }
  NetlinkMessage& attribute(uint16_t type, std::span<const uint8_t> value);
  NetlinkMessage& attribute(uint16_t type, std::string_view text);  // with a zero at its end
  NetlinkMessage& attribute_u8(uint16_t type, uint8_t value);
  NetlinkMessage& attribute_u32(uint16_t type, uint32_t value);  // as this machine orders bytes
  NetlinkMessage& attribute_be32(uint16_t type, uint32_t value);
  // Attributes that `fill` adds become parts of this one.
  NetlinkMessage& nest(uint16_t type, const std::function<void(NetlinkMessage&)>& fill);

  // Complete, with this number.
  [[nodiscard]] std::span<const uint8_t> finish(uint32_t sequence);

 private:
  void append(const void* data, size_t size);

  Bytes bytes_;
};

// A socket in the network namespace of the thread that made it.
class NetlinkSocket {
 public:
  // `protocol`: NETLINK_ROUTE and its like. Throws SysError.
  explicit NetlinkSocket(int protocol);

  // Resolves with the kernel's yes. Throws SysError named `operation` with its no.
  void request(NetlinkMessage message, const std::string& operation);

  // Sends messages as one, and waits for the answers of those that asked for one.
  void request_all(std::span<NetlinkMessage> messages, unsigned answers,
                   const std::string& operation);

  // Calls `found` for every message of the answer to a request with NLM_F_DUMP. Throws SysError.
  void dump(NetlinkMessage message, const std::string& operation,
            const std::function<void(const nlmsghdr&)>& found);

  void close() noexcept { socket_.reset(); }

 private:
  // Throws SysError, also when the kernel does not answer within seconds.
  void receive(const std::string& operation, const std::function<bool(const nlmsghdr&)>& goes_on);

  UniqueFd socket_;
  uint32_t sequence_ = 0;
};

}  // namespace replpage
