// Turns a shaped replica into the running group.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <vector>

#include "core/restore/assistant.h"
#include "core/restore/lazy_memory.h"
#include "core/restore/process_tree.h"
#include "core/restore/replica.h"
#include "core/restore/thread_state.h"

namespace replpage {

class Promotion {
 public:
  Promotion(ProcessTree& tree, SharedObjects& objects) : tree_(tree), objects_(objects) {}

  PromotedReplica run(PromoteInput input, const std::function<void(PromotedReplica&)>& before_run);

  // Frees what was moved away; see Replica::free_moved.
  uint64_t free_moved();

 private:
  void give_memfds(PromoteInput& input);
  void prepare_lazy(const PromoteInput& input, PromotedReplica& promoted);
  void hurry(const GroupImage& image);
  void restore_state(const GroupImage& image);
  void complete_all();
  void leave_stubs();
  void let_go(const GroupImage& image);

  ProcessTree& tree_;
  SharedObjects& objects_;
  SetPolicy scheduling_ = SetPolicy::kByItself;
  std::map<int32_t, std::vector<PageRange>> moved_;    // by pid
  std::map<int32_t, std::vector<QueuedLock>> queued_;  // by pid
  std::vector<std::unique_ptr<Assistant>> assistants_;
};

}  // namespace replpage
