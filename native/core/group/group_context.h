// What the parts of one group's session share, and which thread may touch it.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>

#include "core/group/group_capture.h"
#include "core/group/group_paging.h"
#include "core/group/group_types.h"
#include "core/link/replica_set.h"
#include "core/staging/epoch_runs.h"
#include "core/staging/staging.h"
#include "core/trace/trace_tree.h"

namespace replpage {

//   starting -- first commit --> protected -- root dies --> dying -- kPromoted --> promoted
//   starting, protected -- keeper lost, stop() --> done
//   dying -- it is not promoted --> done   promoted -- kDrained, or it is lost --> done
enum class GroupPhase : uint8_t { kStarting, kProtected, kDying, kPromoted, kDone };

struct GroupContext {
  GroupContext(GroupOptions asked, GroupEvents& told)
      : options(std::move(asked)),
        events(told),
        staging({.memory_bytes = options.staging_bytes_max,
                 .spill_bytes_max = options.spill_bytes_max,
                 .spill_directory = options.spill_directory,
                 .check_wanted = [this] {
                   if (cancelled) throw CaptureCancelled();
                 }}) {}

  void set_phase(GroupPhase next) {
    phase = next;
    phase.notify_all();
  }

  const GroupOptions options;
  GroupEvents& events;
  std::atomic<GroupPhase> phase = GroupPhase::kStarting;
  std::atomic<bool> root_gone = false;
  std::atomic<bool> cancelled = false;  // nobody wants the epoch that is being taken
  std::atomic<bool> hurried = false;    // the worker is needed: a checkpoint gives way
  // The processes have taken up what no epoch can hold: only the last committed one is whole.
  std::atomic<bool> irreplicable = false;

  // Tracer thread only.
  TraceTree* tree = nullptr;
  bool dying = false;     // the root's end was seen, or its promotion ordered: no epoch any more
  GroupImage last_image;  // of the last epoch sent to the keeper
  std::string loss;       // why what was promoted ended before it was drained; then kDone follows
  std::optional<Refusal> out_of_reach;  // a process that its owner may not trace any more

  // Once the group is protected the worker holds worker_mutex whenever it touches these outside of
  // a tracer job; the tracer thread takes it when the primary dies. Before that no death is
  // answered.
  std::mutex worker_mutex;
  std::unique_ptr<GroupCapture> capture;
  StagingArea staging;
  EpochRuns runs{staging};
  uint64_t epoch = 0;

  // Made with the session, and safe to use from both threads.
  std::unique_ptr<ReplicaSet> replicas;

  // Of the worker, which is not in a tracer job's way.
  std::unique_ptr<GroupPaging> paging;  // null: the replica holds everything
  // Of a group without paging, whose checkpoints have a pager of their own: who it says it is, and
  // the first number of a segment that is not used yet.
  uint64_t store_writer = random_writer();
  uint32_t next_segment = 1;
};

}  // namespace replpage
