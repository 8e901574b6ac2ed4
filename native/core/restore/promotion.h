// Turns a shaped replica into the running group.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/restore/assistant.h"
#include "core/restore/lazy_memory.h"
#include "core/restore/primary_files.h"
#include "core/restore/process_tree.h"
#include "core/restore/readiness.h"
#include "core/restore/replica.h"

namespace replpage {

class Promotion {
 public:
  Promotion(ProcessTree& tree, SharedObjects& objects)
      : tree_(tree), objects_(objects), readiness_(tree) {}

  // See Replica::get_ready. expect() comes before the replica is shaped as another image.
  void get_ready(const GroupImage& image) { readiness_.get_ready(image); }
  void expect(const GroupImage& image) { readiness_.expect(image); }

  // For every process of each image: takes hold of a working directory that has been removed, which
  // no path leads to. Throws SysError when it is not to be had.
  void keep_directory(const ProcessImage& process, const PrimaryFiles& files);

  PromotedReplica run(PromoteInput input, const std::function<void(PromotedReplica&)>& before_run);

  // Frees what was moved away; see Replica::free_moved. Lets the group go when it was kept for
  // locks.
  uint64_t free_moved(bool locks_only);
  [[nodiscard]] uint64_t free_again_us() const;

 private:
  void give_memfds(PromoteInput& input);
  void prepare_lazy(const PromoteInput& input, PromotedReplica& promoted);
  // Numbers, in their processes, of the directories that were kept.
  std::map<int32_t, int> give_directories();
  void restore_state(const GroupImage& image);
  void complete_all();
  void leave_stubs();
  static void give_registers(const GroupImage& image);
  void let_go(const GroupImage& image);
  void detach_all();
  [[nodiscard]] bool locks_waited_for() const;

  ProcessTree& tree_;
  SharedObjects& objects_;
  Readiness readiness_;
  struct KeptDirectory {
    std::string path;
    UniqueFd fd;
  };
  std::map<int32_t, KeptDirectory> directories_;  // by pid
  SetScheduling scheduling_ = SetScheduling::kByItself;
  std::map<int32_t, std::vector<PageRange>> moved_;    // by pid
  std::map<int32_t, std::vector<QueuedLock>> queued_;  // by pid
  std::vector<std::unique_ptr<Assistant>> assistants_;
  // A process that is not let go yet, whether it is stopped then, and what else its threads get.
  struct Kept {
    int32_t pid = 0;
    JobControl job_control = JobControl::kRuns;
    std::map<int32_t, SignalInfo> traps;  // by tid
  };
  static Kept kept_of(const ProcessImage& process);
  void detach(const Kept& kept);
  std::vector<Kept> kept_;
  uint64_t lock_deadline_us_ = 0;  // 0: no locks are waited for
};

}  // namespace replpage
