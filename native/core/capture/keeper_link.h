// The tracer's connection to its keeper: requests with replies, and news that come by themselves.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <string>
#include <thread>

#include "core/base/unique_fd.h"
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

  // `keeper` is a pidfd of the process at the other end. It is killed, and with it its replica,
  // when it answers nothing for `answer_ms` milliseconds: a group must not wait for ever for a
  // keeper that hangs, and one that goes on later must not find a promotion to carry out.
  KeeperLink(Channel channel, UniqueFd keeper, News news, uint64_t answer_ms = kAnswerMs);
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
  Bytes wait_reply(MessageType type) { return wait_message(type).body; }
  // The same with its descriptors.
  ReceivedMessage wait_message(MessageType type);
  template <class T>
  T wait_reply_as(MessageType type) {
    return decode<T>(wait_reply(type));
  }

 private:
  static constexpr uint64_t kAnswerMs = 60'000;

  void send_encoded(MessageType type, Bytes body, std::span<const int> descriptors);
  void read_messages();
  void deliver(ReceivedMessage message);
  void lose(const std::string& reason);
  void give_up_keeper();

  Channel channel_;
  UniqueFd keeper_;
  News news_;
  uint64_t answer_ms_;
  std::atomic<uint64_t> promote_due_ms_ = UINT64_MAX;  // until the keeper tells of a promotion
  std::mutex send_mutex_;
  std::mutex mutex_;
  std::condition_variable arrived_;
  std::deque<ReceivedMessage> replies_;
  bool lost_ = false;
  std::string lost_reason_;
  std::thread reader_;
};

}  // namespace replpage
