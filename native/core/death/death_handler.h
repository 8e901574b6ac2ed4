// The end of a group's root, and the planned promotion, which is a death by order.
//
// Decides at each exit stop whether it is the root's death, and answers that: by the replica, from
// the last exact epoch or from the last committed one, or by the end of the group. Everything here
// happens on the tracer thread.
#pragma once

#include <future>
#include <memory>
#include <optional>
#include <string>
#include <thread>

#include "core/death/last_epoch.h"
#include "core/group/group_context.h"
#include "core/group/group_freezer.h"
#include "core/group/tracer_thread.h"

namespace replpage {

class DeathHandler final : public TracerThread::Owner {
 public:
  DeathHandler(GroupContext& context, GroupFreezer& freezer)
      : context_(context), freezer_(freezer) {}

  // Freezes the primary, to be promoted once this job is over, on `node` (null: as at a death).
  // Throws KeeperLost when it does not stop, or has no replica there: then it runs on. The future
  // fails with KeeperLost when the promotion does.
  std::future<PromotionReport> order_promotion(const std::string* node);

  // A death whose answer waits for its time is not answered any more. False: there is none.
  bool cancel_delayed();

  // For a group that is only attached for captures: its root has gone, and what it was is known
  // from the last epoch. Where the kernel does not tell how it ended, it is taken for killed.
  void on_unseen_end(std::optional<int> wait_status);

  // News of the keeper.
  void on_promoted(const PromotedMessage& message);
  void on_drained(const DrainedMessage& message);
  void on_keeper_lost(const std::string& reason);

  // TracerThread::Owner
  [[nodiscard]] uint64_t due_us() const override;
  void after_events() override;
  void on_trouble(const std::string& what) override { give_up(what); }
  void on_new_process(const TracedProcess& /*child*/) override {}
  void on_new_thread(const TracedThread& /*thread*/) override {}
  void on_exec(const TracedProcess& process) override;
  ExitDecision on_exit_stop(const TracedProcess& process, const TracedThread& thread) override;
  void on_process_gone(pid_t pid, int wait_status) override;

 private:
  // Why the root's end is being handled, from its first exit stop or the order to promote.
  struct Death {
    DeathCause cause = DeathCause::kExit;
    int wait_status = 0;
    uint64_t seen_us = 0;
    bool planned = false;
    bool killed = false;         // planned: the primary cannot run any more
    uint64_t promote_at_us = 0;  // waits until then; 0: does not wait
    bool handled = false;
    std::string why_not_exact = {};  // killed: why the last epoch is not taken from it
  };

  [[nodiscard]] bool is_part_of_death(const TracedProcess& process,
                                      const TracedThread& thread) const;
  void begin(int wait_status);
  void handle();
  void answer();
  void answer_own_doing();
  void answer_kill();
  void tell_death();
  [[nodiscard]] std::string why_not_whole();
  void promote_exactly();
  void promote_after_delay();
  void hand_over(HandOver last);
  void give_up(const std::string& reason);
  void end_out_of_reach();
  void fall_silent();
  [[nodiscard]] bool was_killed_meanwhile() const;
  void fail_planned(const std::string& reason);
  void release_staging();
  void let_go();
  void end(const std::string& reason);
  template <class Answer>
  void answer_or_give_up(Answer answer_it);

  GroupContext& context_;
  GroupFreezer& freezer_;
  std::optional<Death> death_;
  uint64_t decided_us_ = 0;
  PromotionReport promotion_;
  std::unique_ptr<MovingConnections> moving_;
  std::optional<std::promise<PromotionReport>> planned_;
  std::jthread releasing_;  // the staging
};

}  // namespace replpage
