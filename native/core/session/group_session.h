// One protected group, as its caller sees it: started, an epoch now and then, promoted or stopped.
//
// Two threads work for a group. The tracer thread (tracer_thread.h) owns every ptrace stop; it
// freezes, reads and thaws, and answers the death of the primary (death_handler.h). The caller's
// worker thread runs start(), epoch(), promote() and stop(), one at a time: it copies while the
// primary runs and waits for the keeper. What both touch is in group_context.h.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <string>

#include "core/capture/epoch_taker.h"
#include "core/capture/first_copy.h"
#include "core/checkpoint/checkpoint_taker.h"
#include "core/death/death_handler.h"
#include "core/group/group_context.h"
#include "core/group/group_freezer.h"
#include "core/group/group_types.h"
#include "core/group/tracer_thread.h"
#include "core/session/drill_check.h"
#include "core/session/exit_watch.h"
#include "core/session/replica_joiner.h"

namespace replpage {

class GroupSession final {
 public:
  GroupSession(GroupOptions options, GroupEvents& events);
  // Detaches; the primary runs on, an unpromoted replica ends.
  ~GroupSession();
  GroupSession(const GroupSession&) = delete;
  GroupSession& operator=(const GroupSession&) = delete;

  // Attaches, checks, builds the replica and commits the first epoch. Throws RefusedError,
  // SysError, KeeperLost. The primary is untouched and detached after an exception.
  StartReport start();

  // Takes and commits one more epoch. An abandoned one (see EpochStats::reason) leaves the replica
  // at the last epoch. Throws KeeperLost, SysError.
  EpochStats epoch();

  // A turn of paging, now and then between epochs: see GroupPaging::turn. Throws SysError.
  PagingReport page(const PagingOrder& order) { return epochs_.page(order); }

  // Where the pages of each mapping are, in at most `cells` parts. Throws SysError (ENOTSUP: the
  // group has no paging).
  std::vector<InspectedMapping> inspect(size_t cells) { return epochs_.inspect(cells); }

  // Completes the page store to a checkpoint of the last epoch; see CheckpointTaker. Throws
  // CheckpointCut when something more urgent was asked for.
  CheckpointReport checkpoint(const CheckpointRequest& request) {
    return CheckpointTaker(context_, tracer_, request).take();
  }

  // Planned promotion: last epoch, hand-over, the replica on `node` runs (null: as at a death), the
  // old primary ends. Throws KeeperLost or SysError; then the primary runs on.
  PromotionReport promote(const std::string* node = nullptr);

  // Has one more replica built beside those there are. False: one is on its way already. Whether it
  // comes is told by on_replica_in_sync or on_replica_out. Any thread.
  bool join(size_t rank, ReplicaHome home);
  // The same for one that is tried out and then over: told by on_drilled. `drill` is what it is
  // made with. Any thread.
  bool drill(const ReplicaOptions& drill, ReplicaHome home, uint64_t run_us);
  // The replica on `node` is recorded to be out: commits go on. Any thread.
  void leave_out(const std::string& node, const std::string& why) {
    context_.replicas->leave_out(node, why);
  }
  void recorded(const std::string& node) { context_.replicas->recorded(node); }

  // Detaches and drops the replica. Waits for a promotion that has begun, and until what was
  // promoted has all of its memory, as long as its keeper goes on. Returns why that process was
  // lost meanwhile; empty: it runs on.
  std::string stop();

  // Before promote(), which comes soon: a checkpoint that is being taken is given up. Any thread.
  void hurry() { context_.hurried = true; }

  // Before stop(), which comes next: what start() or epoch() copies or waits for at the moment is
  // cut short. Any thread.
  void interrupt();

  [[nodiscard]] const GroupOptions& options() const { return context_.options; }
  [[nodiscard]] TraceCounters trace_counters() { return tracer_.counters(); }

  // What the replica is made of at the moment. Any thread.
  [[nodiscard]] ReplicaParts replica_parts() const {
    return {.holder_pid = context_.replicas->holder_here(),
            .staging_bytes = context_.staging.populated_bytes(),
            .replicas = context_.replicas->views()};
  }

 private:
  StartReport start_epochs();
  void become_protected();
  void open_store();
  void connect();
  void take_in_joining();
  void check_for_drill();
  void give_staging_back();
  EpochStats take_first_epoch();
  [[nodiscard]] std::vector<std::string> warnings_of(std::vector<std::string> notes) const;
  void watch_exit();
  void renew_capture();

  GroupContext context_;
  GroupFreezer freezer_{context_};
  DeathHandler deaths_{context_, freezer_};
  TracerThread tracer_{deaths_};
  EpochTaker epochs_{context_, freezer_, tracer_};
  FirstCopy first_copy_{context_, freezer_};
  ReplicaJoiner joiner_;
  // A drill whose keeper is there, until it may join.
  std::optional<ReplicaJoiner::Joining> drill_;
  std::optional<DrillCheck> drill_check_;
  std::atomic<uint64_t> drill_compared_ = 0;
  std::unique_ptr<ExitWatch> exit_watch_;  // only where nobody is attached between epochs
};

}  // namespace replpage
