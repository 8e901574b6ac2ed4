// One end of the connection between a tracer and its keeper.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "core/base/unique_fd.h"
#include "core/channel/messages.h"

namespace replpage {

struct ReceivedMessage {
  MessageType type{};
  Bytes body;
  std::vector<UniqueFd> descriptors;
};

// One thread may send while another receives.
class Channel {
 public:
  explicit Channel(UniqueFd socket) : socket_(std::move(socket)) {}

  // Throws SysError (EPIPE: the other end is gone; EMSGSIZE: body or descriptors over the limit;
  // ETIMEDOUT: the other end took nothing for two seconds).
  void send(MessageType type, Bytes body, std::span<const int> descriptors = {});
  template <class T>
  void send(MessageType type, T message, std::span<const int> descriptors = {}) {
    send(type, encode(message), descriptors);
  }

  // Waits until the other end has taken so much that small messages are sent without waiting.
  // Throws SysError (ETIMEDOUT after two seconds; EPIPE).
  void wait_room() const;

  // Waits for one message. nullopt: the other end is gone or timeout_ms passed (-1: for ever).
  // Throws FormatError on damage, SysError otherwise. One thread at a time.
  std::optional<ReceivedMessage> receive(int timeout_ms = -1);

  [[nodiscard]] int fd() const { return socket_.get(); }
  [[nodiscard]] bool closed() const { return closed_; }

 private:
  UniqueFd socket_;
  Bytes packet_;  // room for the largest, made once: that takes 80 us
  bool closed_ = false;
};

}  // namespace replpage
