// What is set in a replica's processes before it is known from which epoch they are to run: state
// that seldom differs from that of the last one. It takes the time that the last epoch takes.
#pragma once

#include <map>
#include <optional>
#include <set>
#include <vector>

#include "core/base/urgency.h"
#include "core/restore/process_tree.h"
#include "core/restore/thread_state.h"

namespace replpage {

class Readiness {
 public:
  explicit Readiness(ProcessTree& tree) : tree_(tree) {}

  // The caller and the replica's threads run before others from here on, on one CPU; and what lasts
  // of the state of `image`, as which they are shaped, is set.
  void get_ready(const GroupImage& image);

  // Before the replica is shaped as `image`, if it is ready: takes back what would harm processes
  // and threads that fork, exit or lose their memory on the way.
  void expect(const GroupImage& image);

  // Urgency alone, for the threads of `image` that have none yet. Returns how their scheduling is
  // to be set.
  SetScheduling hurry(const GroupImage& image);

  // Append what of the lasting state is not set yet, and what passes.
  void add_process(const ProcessImage& process, int directory, SyscallBatch& batch) const;
  void add_thread(const ProcessImage& process, const ThreadImage& thread,
                  SyscallBatch& batch) const;
  // Sets what only files of /proc set, where it is not set yet.
  void apply_outer(const ProcessImage& process) const;

  // The caller is on its own again.
  void finish() { cpu_.reset(); }
  // A thread that one of the replica's has begun frees memory while others run.
  void give_way(pid_t tid) const;

 private:
  SetScheduling make_urgent(const GroupImage& image);
  void set_ahead(const GroupImage& image);
  void take_back();
  [[nodiscard]] bool stays_alike(const GroupImage& image) const;
  [[nodiscard]] const ProcessImage* process_of(int32_t pid) const;
  [[nodiscard]] bool layout_is_set(const ProcessImage& process) const;

  ProcessTree& tree_;
  std::optional<OnOneCpu> cpu_;
  std::set<int32_t> hurried_;  // tids
  SetScheduling scheduling_ = SetScheduling::kByItself;
  std::optional<GroupImage> set_;           // whose lasting state is set
  std::set<int32_t> with_rseq_;             // tids whose rseq areas are registered
  std::optional<Credentials> credentials_;  // of threads that have not been given others
  std::map<int32_t, std::vector<ResourceLimit>> limits_;  // by pid
};

}  // namespace replpage
