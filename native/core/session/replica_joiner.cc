#include "core/session/replica_joiner.h"

#include <exception>
#include <utility>

namespace replpage {

bool ReplicaJoiner::start(size_t rank, ReplicaHome home, Start start, Failed failed,
                          uint64_t drill_us) {
  const std::lock_guard lock(mutex_);
  if (busy_ || stopped_) return false;
  busy_ = true;
  if (thread_.joinable()) thread_.join();
  thread_ = std::thread([this, rank, drill_us, home = std::move(home), start = std::move(start),
                         failed = std::move(failed)] {
    try {
      KeeperProcess keeper = start(home);
      const std::lock_guard arriving(mutex_);
      arrived_.emplace(rank, home, std::move(keeper), drill_us);
    } catch (const std::exception& error) {
      {
        const std::lock_guard failing(mutex_);
        busy_ = false;
      }
      failed(home.node, error.what());
    }
  });
  return true;
}

std::optional<ReplicaJoiner::Joining> ReplicaJoiner::take() {
  const std::lock_guard lock(mutex_);
  if (arrived_) busy_ = false;
  return std::exchange(arrived_, std::nullopt);
}

void ReplicaJoiner::stop() {
  std::thread last;
  {
    const std::lock_guard lock(mutex_);
    stopped_ = true;
    last.swap(thread_);
  }
  if (last.joinable()) last.join();
  const auto dropped = take();
  if (dropped && dropped->home.place) dropped->home.place->end();
}

}  // namespace replpage
