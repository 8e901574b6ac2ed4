#include "core/address/netlink.h"

#include <arpa/inet.h>
#include <linux/netlink.h>
#include <sys/socket.h>
#include <sys/time.h>

#include <array>
#include <cstring>
#include <vector>

#include "core/base/sys_error.h"

namespace replpage {
namespace {

// The kernel answers within the call; another holder of its locks may make it wait a while.
constexpr timeval kAnswerWithin{5, 0};

constexpr size_t aligned(size_t size) { return NLMSG_ALIGN(size); }

}  // namespace

NetlinkMessage::NetlinkMessage(uint16_t type, uint16_t flags) {
  nlmsghdr header{};
  header.nlmsg_type = type;
  header.nlmsg_flags = static_cast<uint16_t>(NLM_F_REQUEST | flags);
  append(&header, sizeof header);
}

void NetlinkMessage::append(const void* data, size_t size) {
  const auto* from = static_cast<const uint8_t*>(data);
  bytes_.insert(bytes_.end(), from, from + size);
  bytes_.resize(aligned(bytes_.size()));
}

NetlinkMessage& NetlinkMessage::attribute(uint16_t type, std::span<const uint8_t> value) {
  const nlattr header{static_cast<uint16_t>(sizeof(nlattr) + value.size()), type};
  append(&header, sizeof header);
  append(value.data(), value.size());
  return *this;
}

NetlinkMessage& NetlinkMessage::attribute(uint16_t type, std::string_view text) {
  const std::string whole(text);
  const auto* data = reinterpret_cast<const uint8_t*>(whole.c_str());
  return attribute(type, std::span(data, whole.size() + 1));
}

NetlinkMessage& NetlinkMessage::attribute_u8(uint16_t type, uint8_t value) {
  return attribute(type, std::span(&value, 1));
}

NetlinkMessage& NetlinkMessage::attribute_u32(uint16_t type, uint32_t value) {
  std::array<uint8_t, sizeof value> bytes{};
  std::memcpy(bytes.data(), &value, sizeof value);
  return attribute(type, bytes);
}

NetlinkMessage& NetlinkMessage::attribute_be32(uint16_t type, uint32_t value) {
  return attribute_u32(type, htonl(value));
}

NetlinkMessage& NetlinkMessage::nest(uint16_t type,
                                     const std::function<void(NetlinkMessage&)>& fill) {
  const size_t at = bytes_.size();
  nlattr header{0, static_cast<uint16_t>(type | NLA_F_NESTED)};
  append(&header, sizeof header);
  fill(*this);
  header.nla_len = static_cast<uint16_t>(bytes_.size() - at);
  std::memcpy(bytes_.data() + at, &header, sizeof header);
  return *this;
}

std::span<const uint8_t> NetlinkMessage::finish(uint32_t sequence) {
  nlmsghdr header{};
  std::memcpy(&header, bytes_.data(), sizeof header);
  header.nlmsg_len = static_cast<uint32_t>(bytes_.size());
  header.nlmsg_seq = sequence;
  std::memcpy(bytes_.data(), &header, sizeof header);
  return bytes_;
}

NetlinkSocket::NetlinkSocket(int protocol)
    : socket_(::socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, protocol)) {
  if (!socket_.valid()) throw SysError::from_errno("open netlink");
  ::setsockopt(socket_.get(), SOL_SOCKET, SO_RCVTIMEO, &kAnswerWithin, sizeof kAnswerWithin);
}

void NetlinkSocket::request(NetlinkMessage message, const std::string& operation) {
  request_all(std::span(&message, 1), 1, operation);
}

void NetlinkSocket::request_all(std::span<NetlinkMessage> messages, unsigned answers,
                                const std::string& operation) {
  Bytes all;
  const uint32_t first = sequence_ + 1;
  for (NetlinkMessage& message : messages) {
    const auto bytes = message.finish(++sequence_);
    all.insert(all.end(), bytes.begin(), bytes.end());
  }
  if (::send(socket_.get(), all.data(), all.size(), 0) < 0) throw SysError::from_errno(operation);
  if (answers == 0) return;
  receive(operation, [&](const nlmsghdr& header) {
    if (header.nlmsg_seq < first || header.nlmsg_type != NLMSG_ERROR) return true;
    const auto* error = static_cast<const nlmsgerr*>(NLMSG_DATA(&header));
    if (error->error != 0) throw SysError(operation, -error->error);
    return --answers > 0;
  });
}

void NetlinkSocket::dump(NetlinkMessage message, const std::string& operation,
                         const std::function<void(const nlmsghdr&)>& found) {
  const auto bytes = message.finish(++sequence_);
  if (::send(socket_.get(), bytes.data(), bytes.size(), 0) < 0) {
    throw SysError::from_errno(operation);
  }
  receive(operation, [&](const nlmsghdr& header) {
    if (header.nlmsg_seq != sequence_) return true;
    if (header.nlmsg_type == NLMSG_DONE) return false;
    if (header.nlmsg_type == NLMSG_ERROR) {
      throw SysError(operation, -static_cast<const nlmsgerr*>(NLMSG_DATA(&header))->error);
    }
    found(header);
    return true;
  });
}

void NetlinkSocket::receive(const std::string& operation,
                            const std::function<bool(const nlmsghdr&)>& goes_on) {
  alignas(nlmsghdr) std::array<char, 32 * 1024> answer{};
  for (;;) {
    const ssize_t got = ::recv(socket_.get(), answer.data(), answer.size(), 0);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) throw SysError(operation, errno == EAGAIN ? ETIMEDOUT : errno);
    auto left = static_cast<int>(got);
    const auto* header = reinterpret_cast<const nlmsghdr*>(answer.data());
    for (; NLMSG_OK(header, static_cast<unsigned>(left)); header = NLMSG_NEXT(header, left)) {
      if (!goes_on(*header)) return;
    }
  }
}

}  // namespace replpage
