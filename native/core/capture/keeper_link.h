// The tracer's connection to its keeper: requests with replies, and news that come by themselves.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <string>
#include <thread>

#include "core/capture/keeper_lost.h"
#include "core/channel/channel.h"

namespace replpage {

class KeeperLink {
 public:
  // Called on the reader thread; must not block.
  struct News {
    std::function<void(PromotedMessage)> promoted;
    std::function<void(DrainedMessage)> drained;
    std::function<void(std::string reason)> lost;  // once, at the latest when the channel closes
  };

  KeeperLink(Channel channel, News news);
  // Hangs up. A keeper that was not promoted ends its replica then.
  ~KeeperLink();
  KeeperLink(const KeeperLink&) = delete;
  KeeperLink& operator=(const KeeperLink&) = delete;

  template <class T>
  void send(MessageType type, T message, std::span<const int> descriptors = {}) {
    const std::lock_guard lock(send_mutex_);
    send_encoded(type, encode(message), descriptors);
  }
  void send_empty(MessageType type);

  // Waits for the next reply (anything that is no news) and returns its body. Throws KeeperLost,
  // also when the reply is of another type than expected.
  Bytes wait_reply(MessageType type);
  template <class T>
  T wait_reply_as(MessageType type) {
    return decode<T>(wait_reply(type));
  }

 private:
  void send_encoded(MessageType type, Bytes body, std::span<const int> descriptors);
  void read_messages();
  void deliver(ReceivedMessage message);
  void lose(const std::string& reason);

  Channel channel_;
  News news_;
  std::mutex send_mutex_;
  std::mutex mutex_;
  std::condition_variable arrived_;
  std::deque<ReceivedMessage> replies_;
  bool lost_ = false;
  std::string lost_reason_;
  std::thread reader_;
};

}  // namespace replpage
