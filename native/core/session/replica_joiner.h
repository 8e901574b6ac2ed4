// Has the keeper of a replica that joins a running group started, which may take its time: the node
// may not answer.
#pragma once

#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include "core/link/replica_place.h"

namespace replpage {

class ReplicaJoiner {
 public:
  struct Joining {
    size_t rank = 0;
    ReplicaHome home;
    KeeperProcess keeper;
    uint64_t drill_us = 0;  // not 0: for a drill
  };
  using Start = std::function<KeeperProcess(const ReplicaHome&)>;
  using Failed = std::function<void(const std::string& node, const std::string& why)>;

  ~ReplicaJoiner() { stop(); }

  // False: one is on its way, or waits to be taken. Both functions are called on another thread.
  bool start(size_t rank, ReplicaHome home, Start start, Failed failed, uint64_t drill_us = 0);
  // Whose keeper is there.
  std::optional<Joining> take();
  // Waits for what is on its way, and drops it. None is started any more.
  void stop();

 private:
  std::mutex mutex_;
  std::thread thread_;
  bool busy_ = false;
  bool stopped_ = false;
  std::optional<Joining> arrived_;
};

}  // namespace replpage
