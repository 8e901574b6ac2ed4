#include "core/link/keeper_link.h"

#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <utility>

#include "core/base/clock.h"

namespace replpage {
namespace {

// How often the reader looks whether something is overdue.
constexpr uint64_t kLookMs = 1000;

uint64_t now_ms() { return now_us() / 1000; }

}  // namespace

KeeperLink::KeeperLink(Channel channel, UniqueFd keeper, News news, uint64_t answer_ms)
    : channel_(std::move(channel)),
      keeper_(std::move(keeper)),
      news_(std::move(news)),
      answer_ms_(answer_ms),
      reader_([this] { read_messages(); }) {}

KeeperLink::~KeeperLink() {
  // shutdown wakes the reader; closing alone would not.
  ::shutdown(channel_.fd(), SHUT_RDWR);
  if (reader_.joinable()) reader_.join();
}

void KeeperLink::send_encoded(MessageType type, Bytes body, std::span<const int> descriptors) {
  if (type == MessageType::kPromote) promote_due_ms_ = now_ms() + answer_ms_;
  try {
    channel_.send(type, std::move(body), descriptors);
  } catch (const SysError& error) {
    if (error.error() == EPIPE || error.error() == ECONNRESET) throw KeeperLost("keeper is gone");
    throw;
  }
}

void KeeperLink::wait_room() {
  try {
    channel_.wait_room();
  } catch (const SysError& error) {
    if (error.error() == EPIPE) throw KeeperLost("keeper is gone");
    throw;
  }
}

void KeeperLink::send_empty(MessageType type) {
  const std::lock_guard lock(send_mutex_);
  send_encoded(type, {}, {});
}

ReceivedMessage KeeperLink::wait_message(MessageType type, uint64_t limit_ms) {
  std::unique_lock lock(mutex_);
  const bool answered =
      arrived_.wait_for(lock, std::chrono::milliseconds(std::min(answer_ms_, limit_ms)),
                        [this] { return lost_ || !waits_ || !replies_.empty(); });
  if (!answered) {
    lock.unlock();
    give_up_keeper("did not answer", std::min(answer_ms_, limit_ms));
    lock.lock();
  }
  if (replies_.empty())
    throw KeeperLost(lost_ ? lost_reason_ : "its replica is not wanted any more");
  ReceivedMessage reply = std::move(replies_.front());
  replies_.pop_front();
  if (reply.type != type) throw KeeperLost("keeper answered out of order");
  return reply;
}

void KeeperLink::read_messages() {
  try {
    const int wait_ms = static_cast<int>(std::min(kLookMs, answer_ms_));
    while (!channel_.closed()) {
      if (auto message = channel_.receive(wait_ms)) {
        deliver(std::move(*message));
      }
      give_up_overdue();
    }
    lose("keeper is gone");
  } catch (const std::exception& error) {
    lose(std::string("keeper's answer was not understood: ") + error.what());
  }
}

void KeeperLink::deliver(ReceivedMessage message) {
  switch (message.type) {
    case MessageType::kPromoted:
      promote_due_ms_ = UINT64_MAX;
      draining_ = true;
      progress_ms_ = now_ms();
      news_.promoted(decode<PromotedMessage>(message.body));
      return;
    case MessageType::kDraining:
      return note_progress(decode<DrainingMessage>(message.body).pages);
    case MessageType::kDrained:
      draining_ = false;
      news_.drained(decode<DrainedMessage>(message.body));
      return;
    case MessageType::kDrilled:
      if (news_.drilled) news_.drilled(decode<DrilledMessage>(message.body));
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

void KeeperLink::note_progress(uint64_t pages) {
  if (pages != std::exchange(pages_, pages)) progress_ms_ = now_ms();
}

void KeeperLink::give_up_overdue() {
  const uint64_t now = now_ms();
  if (now > promote_due_ms_) return give_up_keeper("did not answer", answer_ms_);
  const uint64_t wanted = drain_wanted_ms_;
  if (!draining_ || wanted == UINT64_MAX) return;
  if (now <= std::max(wanted, progress_ms_) + answer_ms_) return;
  draining_ = false;
  give_up_keeper("fetched nothing of what its process lacks", answer_ms_);
}

void KeeperLink::give_up_keeper(const char* what, uint64_t waited_ms) {
  promote_due_ms_ = UINT64_MAX;
  kill_keeper();
  lose(std::string("the keeper ") + what + " for " + std::to_string(waited_ms / 1000) + " s");
}

void KeeperLink::kill_keeper() const {
  if (keeper_.valid()) ::syscall(SYS_pidfd_send_signal, keeper_.get(), SIGKILL, nullptr, 0);
}

void KeeperLink::stop_waiting() {
  const std::lock_guard lock(mutex_);
  waits_ = false;
  arrived_.notify_all();
}

void KeeperLink::insist_on_drain() { drain_wanted_ms_ = now_ms(); }

void KeeperLink::drop_replica() { kill_keeper(); }

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
