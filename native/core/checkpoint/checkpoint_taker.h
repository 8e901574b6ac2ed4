// Takes a checkpoint: what the page store lacks of the last committed epoch is copied from the
// replica, which stands still between two epochs. The primary runs on; its next epoch waits.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/checkpoint/checkpoint_state.h"
#include "core/group/group_context.h"
#include "core/group/tracer_thread.h"
#include "core/memory/page_ranges.h"

namespace replpage {

struct CheckpointRequest {
  PagingOptions store;  // of a group that has no paging
  std::string options;  // of the group, kept with the checkpoint
  bool keep = false;    // earlier checkpoints of the group
};

// It was given up for something more urgent.
class CheckpointCut : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct CheckpointReport {
  std::string id;
  uint64_t epoch = 0;
  uint64_t written_bytes = 0;  // of pages, for this checkpoint
  uint64_t cold_bytes = 0;     // that the store had before
  uint64_t stored_bytes = 0;   // on disk, with what it shares with the group
};

// Worker thread, for one checkpoint.
class CheckpointTaker {
 public:
  CheckpointTaker(GroupContext& context, TracerThread& tracer, const CheckpointRequest& request)
      : context_(context), tracer_(tracer), request_(request) {}

  // Throws StoreError, SysError, RefusedError, KeeperLost, and CheckpointCut when the primary is
  // dying, or is to be promoted or unprotected. An earlier checkpoint is as it was then; where it
  // was as good as done it may even be there.
  CheckpointReport take();

 private:
  struct Source {
    int32_t pid = 0;  // as in runs
    UniqueFd memory, pagemap;
  };
  struct Wanted {
    int32_t pid = 0;
    uint32_t source = 0;
    PageRange range;
    bool zeros_count = false;  // what is all zero must be so in the replica, too
  };

  CheckpointReport take_or_throw();
  void leave_behind();
  void check_wanted() const;
  PagerLink& pager();
  void take_image();
  void add_cold_pages();
  void look();
  void want_process(const ProcessImage& process, const Source& source, uint32_t number);
  void want_object(const SharedObjectImage& object, int memfd, uint32_t number);
  void write_wanted();
  void write_batch(const std::vector<Wanted>& batch);
  void check_alive();
  void forget_sources();
  void leave_generation();
  PagerDoneMessage seal();
  template <class Answer, class Ask>
  Answer ask_and_wait(Ask ask);

  GroupContext& context_;
  TracerThread& tracer_;
  const CheckpointRequest& request_;
  std::unique_ptr<PagerLink> own_pager_;
  uint32_t next_source_ = 0;
  std::set<uint32_t> sources_;
  CheckpointState state_;
  std::map<int32_t, PageRanges> cold_;  // by pid
  std::vector<Wanted> wanted_;
  std::set<uint32_t> segments_, new_segments_;
  uint64_t cold_pages_ = 0, written_pages_ = 0;
};

}  // namespace replpage
