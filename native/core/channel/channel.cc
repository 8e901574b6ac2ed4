#include "core/channel/channel.h"

#include <poll.h>
#include <sys/socket.h>

#include <array>
#include <cstddef>
#include <cstring>

#include "core/base/clock.h"
#include "core/base/crc32c.h"
#include "core/base/sys_error.h"

namespace replpage {
namespace {

// A peer that takes nothing for so long is hung; its group is better off without it.
constexpr int kSendTimeoutMs = 2000;

constexpr size_t kControlBytes = CMSG_SPACE(kDescriptorsMax * sizeof(int));

// Of a keeper or of a pager: each refuses what it does not know of that.
bool known_type(MessageType type) {
  const auto number = static_cast<uint16_t>(type);
  return (number >= static_cast<uint16_t>(MessageType::kConfigure) &&
          number <= static_cast<uint16_t>(MessageType::kHash)) ||
         (number >= static_cast<uint16_t>(MessageType::kReady) &&
          number <= static_cast<uint16_t>(MessageType::kHashes));
}

uint32_t header_crc(const MessageHeader& header) {
  return crc32c({reinterpret_cast<const uint8_t*>(&header), offsetof(MessageHeader, header_crc)});
}

bool gone(int error) { return error == EPIPE || error == ECONNRESET || error == ENOTCONN; }

// False: the deadline passed. deadline_ms is a duration, -1 for ever.
bool wait_for(int fd, short events, int timeout_ms) {
  const uint64_t end_ns = now_ns() + static_cast<uint64_t>(timeout_ms) * 1'000'000;
  for (int left_ms = timeout_ms;;) {
    pollfd item{.fd = fd, .events = events, .revents = 0};
    const int ready = ::poll(&item, 1, left_ms);
    if (ready > 0) return true;
    if (ready == 0) return false;
    if (errno != EINTR) throw SysError::from_errno("poll of the channel");
    if (timeout_ms < 0) continue;
    const uint64_t now = now_ns();
    left_ms = now >= end_ns ? 0 : static_cast<int>((end_ns - now) / 1'000'000);
  }
}

bool hung_up(int fd) {
  pollfd item{.fd = fd, .events = POLLRDHUP, .revents = 0};
  return ::poll(&item, 1, 0) > 0 && (item.revents & (POLLRDHUP | POLLHUP | POLLERR)) != 0;
}

std::vector<UniqueFd> received_descriptors(msghdr& message) {
  std::vector<UniqueFd> descriptors;
  for (cmsghdr* c = CMSG_FIRSTHDR(&message); c != nullptr; c = CMSG_NXTHDR(&message, c)) {
    if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) continue;
    const size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < count; ++i) {
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof fd);
      descriptors.emplace_back(fd);
    }
  }
  return descriptors;
}

// Throws FormatError unless the packet is exactly one undamaged message.
ReceivedMessage parse(std::span<const uint8_t> packet) {
  MessageHeader header;
  if (packet.size() < sizeof header) throw FormatError("message is shorter than its header");
  std::memcpy(&header, packet.data(), sizeof header);
  if (header.magic != kMessageMagic) throw FormatError("message has a wrong magic number");
  if (header.header_crc != header_crc(header)) throw FormatError("message header is damaged");
  if (header.version != kMessageVersion) {
    throw FormatError("message has version " + std::to_string(header.version) + ", expected " +
                      std::to_string(kMessageVersion));
  }
  if (header.reserved != 0) throw FormatError("message has a reserved field that is not zero");
  if (!known_type(header.type)) throw FormatError("message is of an unknown type");
  const std::span<const uint8_t> body = packet.subspan(sizeof header);
  if (header.body_bytes != body.size()) throw FormatError("message has a wrong body length");
  if (header.body_crc != crc32c(body)) throw FormatError("message body is damaged");
  return {.type = header.type, .body = Bytes(body.begin(), body.end()), .descriptors = {}};
}

void attach(msghdr& message, std::span<uint8_t> control, std::span<const int> descriptors) {
  if (descriptors.empty()) return;
  message.msg_control = control.data();
  message.msg_controllen = CMSG_SPACE(descriptors.size_bytes());
  cmsghdr* c = CMSG_FIRSTHDR(&message);
  c->cmsg_level = SOL_SOCKET;
  c->cmsg_type = SCM_RIGHTS;
  c->cmsg_len = CMSG_LEN(descriptors.size_bytes());
  std::memcpy(CMSG_DATA(c), descriptors.data(), descriptors.size_bytes());
}

}  // namespace

void Channel::send(MessageType type, Bytes body, std::span<const int> descriptors) {
  if (body.size() > kMessageBytesMax - sizeof(MessageHeader) ||
      descriptors.size() > kDescriptorsMax) {
    throw SysError("send to the other end of the channel", EMSGSIZE);
  }
  MessageHeader header{
      .type = type, .body_bytes = static_cast<uint32_t>(body.size()), .body_crc = crc32c(body)};
  header.header_crc = header_crc(header);
  std::array<iovec, 2> parts{iovec{&header, sizeof header}, iovec{body.data(), body.size()}};
  alignas(cmsghdr) std::array<uint8_t, kControlBytes> control{};
  msghdr message{};
  message.msg_iov = parts.data();
  message.msg_iovlen = parts.size();
  attach(message, control, descriptors);
  for (;;) {
    if (::sendmsg(socket_.get(), &message, MSG_NOSIGNAL | MSG_DONTWAIT) >= 0) return;
    if (gone(errno)) throw SysError("send to the other end of the channel", EPIPE);
    if (errno != EINTR && errno != EAGAIN) {
      throw SysError::from_errno("send to the other end of the channel");
    }
    if (errno == EAGAIN && !wait_for(socket_.get(), POLLOUT, kSendTimeoutMs)) {
      throw SysError("send to the other end of the channel", ETIMEDOUT);
    }
  }
}

// A socket is writable while at most a quarter of its buffer is in use (unix_writable in
// net/unix/af_unix.c).
void Channel::wait_room() const {
  if (!wait_for(socket_.get(), POLLOUT, kSendTimeoutMs)) {
    throw SysError("send to the other end of the channel", ETIMEDOUT);
  }
  if (hung_up(socket_.get())) throw SysError("send to the other end of the channel", EPIPE);
}

std::optional<ReceivedMessage> Channel::receive(int timeout_ms) {
  if (closed_ || !wait_for(socket_.get(), POLLIN, timeout_ms)) return std::nullopt;
  packet_.resize(kMessageBytesMax);
  iovec part{packet_.data(), packet_.size()};
  alignas(cmsghdr) std::array<uint8_t, kControlBytes> control{};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control.data();
  message.msg_controllen = control.size();
  ssize_t got = 0;
  do {
    got = ::recvmsg(socket_.get(), &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
  } while (got < 0 && errno == EINTR);
  if (got < 0 && errno == EAGAIN) return std::nullopt;
  if (got < 0 && !gone(errno)) throw SysError::from_errno("receive from the channel");
  std::vector<UniqueFd> descriptors;
  if (got >= 0) descriptors = received_descriptors(message);
  if (got < 0 || (got == 0 && hung_up(socket_.get()))) {
    closed_ = true;
    return std::nullopt;
  }
  if ((message.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) != 0) {
    throw FormatError("message is longer than allowed");
  }
  ReceivedMessage received = parse({packet_.data(), static_cast<size_t>(got)});
  received.descriptors = std::move(descriptors);
  return received;
}

}  // namespace replpage
