// One protected group: its tracer thread, its epochs, its death.
//
// Two threads work for a group. The tracer thread owns every ptrace stop and waits for nobody but
// the tracees; it freezes, reads and thaws, and takes the last epoch of a dying primary. The
// caller's worker thread runs start(), epoch(), promote() and stop(), one at a time: it copies
// while the primary runs and waits for the keeper.
//
//   starting -- first commit --> protected -- root dies --> dying -- kPromoted --> promoted
//   promoted -- kDrained --> done        protected -- keeper lost, stop() --> done
#pragma once

#include <atomic>
#include <functional>
#include <future>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include "core/capture/epoch_runs.h"
#include "core/capture/exit_watch.h"
#include "core/capture/group_capture.h"
#include "core/capture/group_types.h"
#include "core/capture/job_queue.h"
#include "core/capture/keeper_link.h"
#include "core/capture/keeper_process.h"
#include "core/capture/staging.h"
#include "core/trace/trace_tree.h"

namespace replpage {

class GroupSession final : private TraceObserver {
 public:
  GroupSession(GroupOptions options, GroupEvents& events);
  // Detaches; the primary runs on, an unpromoted replica ends.
  ~GroupSession() override;
  GroupSession(const GroupSession&) = delete;
  GroupSession& operator=(const GroupSession&) = delete;

  // Attaches, checks, builds the replica and commits the first epoch. Throws RefusedError,
  // SysError, KeeperLost. The primary is untouched and detached after an exception.
  StartReport start();

  // Takes and commits one more epoch. An abandoned one (see EpochStats::reason) leaves the replica
  // at the last epoch. Throws KeeperLost, SysError.
  EpochStats epoch();

  // Planned promotion: last epoch, hand-over, the replica runs, the old primary ends. Throws
  // KeeperLost or SysError; then the primary runs on.
  PromotionReport promote();

  // Detaches and drops the replica. Waits for a promotion that has begun.
  void stop();

  [[nodiscard]] TraceCounters trace_counters();

 private:
  enum class Phase : uint8_t { kStarting, kProtected, kDying, kPromoted, kDone };
  // Why the root's end is being handled, from its first exit stop or the order to promote.
  struct Death {
    DeathCause cause = DeathCause::kExit;
    int signal = 0, status = 0;
    uint64_t seen_us = 0;
    bool planned = false;
    bool killed = false;         // planned: the primary cannot run any more
    uint64_t promote_at_us = 0;  // waits until then; 0: does not wait
    bool handled = false;
  };
  // What the keeper needs to let the replica run.
  struct HandOver {
    GroupImage image;
    std::vector<UniqueFd> open_files;
    std::vector<LazyRange> lazy;
    bool exact = false;
  };

  // TraceObserver, on the tracer thread.
  void on_new_process(const TracedProcess& child) override;
  void on_new_thread(const TracedThread& thread) override;
  void on_exec(const TracedProcess& process) override;
  ExitDecision on_exit_stop(const TracedProcess& process, const TracedThread& thread) override;
  void on_process_gone(pid_t pid, int wait_status) override;

  // Tracer thread: life.
  void trace();
  void trace_once();
  GroupImage freeze_first();
  bool freeze_and_copy(GroupImage& image, EpochStats& stats);
  bool slow_state_due();
  FreezeResult stop_group(uint64_t deadline_us);
  std::string while_stopped(uint64_t deadline_us, const std::function<void()>& work);

  // Tracer thread: death, in group_death.cc.
  void begin_death(DeathCause cause, int wait_status);
  void on_unseen_end(std::optional<int> wait_status);
  void handle_death();
  void answer_death();
  void promote_after_delay();
  [[nodiscard]] std::string describe_death() const;
  HandOver capture_last_epoch();
  void restore_dropped_signals(GroupImage& image) const;
  void promote_last_epoch();
  std::vector<UniqueFd> match_open_files();
  void take_matching_files(std::vector<UniqueFd>& matched);
  void hand_over(HandOver last);
  void kill_primary();
  void send_descriptors(const std::vector<UniqueFd>& open_files,
                        const std::vector<LazyRange>& lazy);
  void on_promoted(const PromotedMessage& message);
  void on_drained(const DrainedMessage& message);
  void on_keeper_lost(const std::string& reason);
  void give_up(const std::string& reason);
  void empty_robust_lists();
  void let_go();
  void end(const std::string& reason);
  void set_phase(Phase phase);

  // Worker thread.
  KeeperProcess start_keeper();
  void connect(KeeperProcess& keeper);
  void watch_exit();
  uint64_t copy_initially(GroupImage& image);
  void admit_newcomers();
  uint64_t cpu_us();
  uint32_t precopy(EpochStats& stats);
  bool try_epoch(EpochStats& stats);
  bool commit(GroupImage& image, EpochStats& stats);
  template <class Work>
  auto on_tracer(Work work) {
    return tracer_jobs_.call(std::move(work));
  }

  GroupOptions options_;
  GroupEvents& events_;
  std::atomic<Phase> phase_ = Phase::kStarting;
  std::atomic<bool> root_gone_ = false;

  // Tracer thread only.
  std::unique_ptr<TraceTree> tree_;
  std::optional<Death> death_;
  GroupImage last_image_;  // of the last epoch sent to the keeper
  PromotionReport promotion_;
  std::optional<std::promise<PromotionReport>> planned_;
  uint64_t decided_us_ = 0;
  uint64_t slow_state_us_ = 0;

  // The worker holds worker_mutex_ whenever it touches these outside of a tracer job; the tracer
  // thread takes it when the primary dies.
  std::mutex worker_mutex_;
  std::unique_ptr<GroupCapture> capture_;
  std::unique_ptr<StagingArea> staging_;
  std::unique_ptr<EpochRuns> runs_;
  std::unique_ptr<KeeperLink> keeper_;
  GroupImage running_image_;  // mappings as the pre-copy last saw them
  uint64_t epoch_ = 0;

  std::atomic<bool> quit_ = false;
  std::atomic<TraceTree*> wakeable_ = nullptr;
  std::mutex counters_mutex_;
  TraceCounters counters_;  // as the tracer thread last published them
  JobQueue tracer_jobs_;
  std::thread tracer_;
  std::unique_ptr<ExitWatch> exit_watch_;  // only where nobody is attached between epochs
};

}  // namespace replpage
