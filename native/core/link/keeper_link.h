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
#include "core/channel/channel.h"
#include "core/link/keeper_lost.h"

namespace replpage {

class KeeperLink {
 public:
  // Called on the reader thread; must not block.
  struct News {
    std::function<void(PromotedMessage)> promoted;
    std::function<void(DrainedMessage)> drained;
    std::function<void(DrilledMessage)> drilled = {};
    std::function<void(std::string reason)> lost;  // once, at the latest when the channel closes
  };

  // `keeper` is a pidfd of the process at the other end. It is killed, and with it its replica,
  // when it answers nothing for `answer_ms` milliseconds: a group must not wait for ever for a
  // keeper that hangs, and one that goes on later must not find a promotion to carry out.
  KeeperLink(Channel channel, UniqueFd keeper, News news, uint64_t answer_ms);
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
  // Before a short message that is sent where nobody may wait: waits here until there is room for
  // it. Throws KeeperLost, SysError(ETIMEDOUT).
  void wait_room();

  // Waits for the next reply (anything that is no news) and returns its body. Throws KeeperLost,
  // also when the reply is of another type than expected, or does not come within `limit_ms`
  // milliseconds: the keeper is given up then.
  Bytes wait_reply(MessageType type, uint64_t limit_ms = UINT64_MAX) {
    return wait_message(type, limit_ms).body;
  }
  // The same with its descriptors.
  ReceivedMessage wait_message(MessageType type, uint64_t limit_ms = UINT64_MAX);
  template <class T>
  T wait_reply_as(MessageType type, uint64_t limit_ms = UINT64_MAX) {
    return decode<T>(wait_reply(type, limit_ms));
  }

  // Replies are not waited for any more: who waits gets KeeperLost. News still come. Any thread.
  void stop_waiting();
  // Somebody waits until the promoted process needs nothing of the old one: from now on a keeper
  // that fetches no page for as long as it may be silent is given up. What the process lacks then
  // is lost, so it ends with its keeper. Any thread.
  void insist_on_drain();
  // Ends a replica that was not promoted, and never will be. Any thread.
  void drop_replica();

 private:
  void send_encoded(MessageType type, Bytes body, std::span<const int> descriptors);
  void read_messages();
  void deliver(ReceivedMessage message);
  void lose(const std::string& reason);
  void note_progress(uint64_t pages);
  void give_up_overdue();
  void give_up_keeper(const char* what, uint64_t waited_ms);
  void kill_keeper() const;

  Channel channel_;
  UniqueFd keeper_;
  News news_;
  uint64_t answer_ms_;
  std::atomic<uint64_t> promote_due_ms_ = UINT64_MAX;   // until the keeper tells of a promotion
  std::atomic<uint64_t> drain_wanted_ms_ = UINT64_MAX;  // since when
  std::mutex send_mutex_;
  std::mutex mutex_;
  std::condition_variable arrived_;
  std::deque<ReceivedMessage> replies_;
  bool lost_ = false;
  bool waits_ = true;
  std::string lost_reason_;
  // Of the reader.
  bool draining_ = false;
  uint64_t progress_ms_ = 0, pages_ = 0;
  std::thread reader_;
};

}  // namespace replpage
