#include "core/capture/keeper_link.h"

#include <sys/socket.h>

namespace replpage {

KeeperLink::KeeperLink(Channel channel, News news)
    : channel_(std::move(channel)), news_(std::move(news)), reader_([this] { read_messages(); }) {}

KeeperLink::~KeeperLink() {
  // shutdown wakes the reader; closing alone would not.
  ::shutdown(channel_.fd(), SHUT_RDWR);
  if (reader_.joinable()) reader_.join();
}

void KeeperLink::send_encoded(MessageType type, Bytes body, std::span<const int> descriptors) {
  try {
    channel_.send(type, std::move(body), descriptors);
  } catch (const SysError& error) {
    if (error.error() == EPIPE || error.error() == ECONNRESET) throw KeeperLost("keeper is gone");
    throw;
  }
}

void KeeperLink::send_empty(MessageType type) {
  const std::lock_guard lock(send_mutex_);
  send_encoded(type, {}, {});
}

Bytes KeeperLink::wait_reply(MessageType type) {
  std::unique_lock lock(mutex_);
  arrived_.wait(lock, [this] { return lost_ || !replies_.empty(); });
  if (replies_.empty()) throw KeeperLost(lost_reason_);
  ReceivedMessage reply = std::move(replies_.front());
  replies_.pop_front();
  if (reply.type != type) throw KeeperLost("keeper answered out of order");
  return std::move(reply.body);
}

void KeeperLink::read_messages() {
  try {
    while (auto message = channel_.receive()) deliver(std::move(*message));
    lose("keeper is gone");
  } catch (const std::exception& error) {
    lose(std::string("keeper's answer was not understood: ") + error.what());
  }
}

void KeeperLink::deliver(ReceivedMessage message) {
  switch (message.type) {
    case MessageType::kPromoted:
      news_.promoted(decode<PromotedMessage>(message.body));
      return;
    case MessageType::kDrained:
      news_.drained(decode<DrainedMessage>(message.body));
      return;
    case MessageType::kFailed:
      lose(decode<FailedMessage>(message.body).reason);
      return;
    default: {
      const std::lock_guard lock(mutex_);
      replies_.push_back(std::move(message));
      arrived_.notify_all();
    }
  }
}

void KeeperLink::lose(const std::string& reason) {
  {
    const std::lock_guard lock(mutex_);
    if (lost_) return;
    lost_ = true;
    lost_reason_ = reason;
    arrived_.notify_all();
  }
  news_.lost(reason);
}

}  // namespace replpage
