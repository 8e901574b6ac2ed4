#include "core/death/death_handler.h"

#include <sys/wait.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <system_error>
#include <utility>

#include "core/base/clock.h"
#include "core/base/not_this_time.h"
#include "core/base/urgency.h"
#include "core/death/group_kill.h"
#include "core/death/hand_over.h"
#include "core/death/old_primary.h"
#include "core/group/death_cause.h"
#include "core/group/owner_rights.h"

namespace replpage {
namespace {

uint64_t pages_of(const std::vector<LazyRange>& lazy) {
  uint64_t pages = 0;
  for (const LazyRange& range : lazy) pages += (range.end - range.start) / kPageSize;
  return pages;
}

}  // namespace

void DeathHandler::on_exec(const TracedProcess& process) {
  if (context_.capture) context_.capture->note_execution(process.pid);
  if (context_.out_of_reach || death_) return;
  context_.out_of_reach = owner_refusal(context_.options, process.pid);
  if (context_.out_of_reach) context_.tree->wake();
}

void DeathHandler::end_out_of_reach() {
  // A start that is under way finds it by itself.
  if (context_.phase != GroupPhase::kProtected) return;
  const Refusal& refusal = *context_.out_of_reach;
  give_up(refusal.object + " is out of its owner's reach: " + refusal.why);
}

ExitDecision DeathHandler::on_exit_stop(const TracedProcess& process, const TracedThread& thread) {
  const GroupPhase phase = context_.phase;
  if (death_) {
    // Until the replica has everything its pages are read from here, whoever kills what is left.
    return phase == GroupPhase::kDone ? ExitDecision::kRelease : ExitDecision::kHold;
  }
  if (phase != GroupPhase::kProtected || context_.out_of_reach) return ExitDecision::kRelease;
  if (!is_part_of_death(process, thread)) {
    const bool is_child = process.pid != context_.tree->root();
    if (is_child && process.threads.size() == 1) context_.capture->note_exit(process.pid);
    return ExitDecision::kRelease;
  }
  begin(thread.exit_code);
  return ExitDecision::kHold;
}

bool DeathHandler::is_part_of_death(const TracedProcess& process,
                                    const TracedThread& thread) const {
  const DeathCause cause = cause_of(thread.exit_code);
  if (process.pid != context_.tree->root()) {
    // A child that was killed alone just dies, as its parent expects; one that was killed along
    // with the root (kill -9 -PGID) is part of the root's death.
    return cause == DeathCause::kSigkill && is_killed_along(process.pid, context_.tree->root());
  }
  // A thread that ends alone is none of the process's end.
  if (cause == DeathCause::kExit && process.threads.size() > 1) return false;
  return !is_wanted(cause) || context_.options.promote_on_exit;
}

void DeathHandler::begin(int wait_status) {
  context_.dying = true;
  context_.replicas->choose_successor();
  death_ = Death{.cause = cause_of(wait_status), .wait_status = wait_status, .seen_us = now_us()};
  context_.tree->wake();
}

void DeathHandler::on_unseen_end(std::optional<int> wait_status) {
  context_.root_gone = true;
  if (death_ || context_.phase != GroupPhase::kProtected || context_.out_of_reach) return;
  begin(wait_status.value_or(SIGKILL));
  if (!is_wanted(death_->cause) || context_.options.promote_on_exit) return;
  death_->handled = true;
  end(describe_end(death_->wait_status));
}

void DeathHandler::on_process_gone(pid_t pid, int wait_status) {
  context_.capture->note_gone(pid, wait_status);
  if (pid != context_.tree->root()) return;
  // Also where it was attached, but its exit stop was not seen or not kept.
  on_unseen_end(wait_status);
}

std::future<PromotionReport> DeathHandler::order_promotion(const std::string* node) {
  if (context_.out_of_reach) throw KeeperLost(context_.out_of_reach->why);
  if (context_.irreplicable) throw NotThisTime("it has taken up what cannot be replicated");
  const FreezeResult frozen = freezer_.freeze(kStartDeadlineUs);
  const bool chosen = frozen.frozen && context_.replicas->choose_successor(node);
  if (!chosen) {
    if (!death_) freezer_.let_run();
    throw KeeperLost(frozen.frozen ? "no replica is in sync there"
                                   : "the primary did not stop: " + frozen.reason);
  }
  context_.dying = true;
  death_ = Death{.seen_us = now_us(), .planned = true};
  return planned_.emplace().get_future();
}

uint64_t DeathHandler::due_us() const { return death_ ? death_->promote_at_us : 0; }

void DeathHandler::after_events() {
  if (context_.out_of_reach && !death_) return end_out_of_reach();
  if (!death_) return;
  if (!death_->handled) {
    handle();
  } else if (death_->promote_at_us != 0 && now_us() >= death_->promote_at_us) {
    promote_after_delay();
  }
}

template <class Answer>
void DeathHandler::answer_or_give_up(Answer answer_it) {
  const std::lock_guard lock(context_.worker_mutex);
  context_.staging.hurry();
  try {
    answer_it();
  } catch (const std::exception& error) {
    give_up(std::string("it was not promoted: ") + error.what());
  }
}

void DeathHandler::handle() {
  death_->handled = true;
  context_.set_phase(GroupPhase::kDying);
  decided_us_ = now_us();
  // The worker leaves a copy within one chunk; what it had not copied stays marked.
  context_.cancelled = true;
  answer_or_give_up([this] { answer(); });
}

void DeathHandler::answer() {
  if (death_->planned) return hand_over(capture_planned_epoch(context_));
  std::string reason = why_not_whole();
  if (is_own_doing(death_->cause)) {
    tell_death();
    return answer_own_doing();
  }
  death_->why_not_exact = std::move(reason);
  answer_kill();
}

// Told when the replica is on its way: who listens would take a CPU from those that still have to
// come to their stops.
void DeathHandler::answer_kill() {
  try {
    // Not before: getting ready takes a CPU from them as well.
    context_.replicas->successor().send_empty(MessageType::kDying);
    if (death_->why_not_exact.empty()) {
      promote_exactly();
    } else {
      hand_over(committed_epoch(context_));
    }
  } catch (const std::exception&) {
    tell_death();
    throw;
  }
  tell_death();
}

void DeathHandler::tell_death() {
  const int status = death_->wait_status;
  context_.events.on_died(death_->cause, WIFSIGNALED(status) ? WTERMSIG(status) : 0,
                          WIFEXITED(status) ? WEXITSTATUS(status) : 0);
}

// Threads that nobody followed are gone with their registers, what does not stand still cannot be
// read, and some things cannot be replicated: then the last epoch is the newest whole state.
std::string DeathHandler::why_not_whole() {
  const pid_t root = context_.options.pid;
  const TraceTree& tree = *context_.tree;
  if (!context_.options.attach_always) return "nobody was attached when it died";
  const FreezeResult frozen = context_.tree->freeze_around_death(root, kDeathDeadlineUs);
  if (!frozen.frozen) return frozen.reason;
  if (context_.irreplicable) return "it had taken up what cannot be replicated";
  if (!tree.processes().contains(root)) return "it was gone before it could be read";
  if (!tree.follows_all_threads(root)) return "it made threads too fast to follow each";
  return {};
}

// What it was about to do when it ended, it would do again: it is taken back by an epoch.
void DeathHandler::answer_own_doing() {
  const GroupOptions& options = context_.options;
  if (options.retries_left == 0) {
    return end(describe_end(death_->wait_status) + " with no retries left");
  }
  if (options.crash_delay_us > 0) {
    death_->promote_at_us = now_us() + options.crash_delay_us;
    return;
  }
  hand_over(committed_epoch(context_));
}

void DeathHandler::promote_after_delay() {
  death_->promote_at_us = 0;
  answer_or_give_up([this] { hand_over(committed_epoch(context_)); });
}

void DeathHandler::promote_exactly() {
  std::optional<HandOver> last;
  try {
    last = capture_last_epoch(context_, death_->seen_us);
  } catch (const std::exception& error) {
    // The memory is gone already (the OOM reaper), or something new cannot be replicated.
    death_->why_not_exact = error.what();
    last = committed_epoch(context_);
  }
  hand_over(std::move(*last));
}

bool DeathHandler::cancel_delayed() {
  if (context_.phase != GroupPhase::kDying || due_us() == 0) return false;
  death_->promote_at_us = 0;
  end(describe_end(death_->wait_status) + ", and was not to be promoted any more");
  return true;
}

void DeathHandler::hand_over(HandOver last) {
  promotion_ = {.epoch = last.image.epoch,
                .pid = 0,
                .host_pid = 0,
                .exact = last.exact,
                .decision_to_run_us = 0,
                .death_to_run_us = 0,
                .lazy_pages = pages_of(last.lazy),
                .why_not_exact = death_->why_not_exact,
                .node = context_.replicas->successor_node()};
  moving_ = std::move(last.moving);
  send_order(context_, last, [this] { fall_silent(); });
}

// From here on the old primary does nothing that anybody could notice.
void DeathHandler::fall_silent() {
  if (moving_) moving_->fall_silent();
  if (death_->planned) {
    death_->killed = true;
    kill_old_primary(*context_.tree);
  }
  const GroupOptions& options = context_.options;
  if (!context_.replicas->successor_is_here() && !options.service_address.empty()) {
    give_up_quietly(options.service_address);
  }
}

// The keeper has read all that was staged; its next protection needs the memory.
void DeathHandler::release_staging() {
  const std::lock_guard lock(context_.worker_mutex);
  try {
    context_.staging.release();
  } catch (const SysError&) {  // the spill file keeps its length until it is closed
  }
}

void DeathHandler::on_promoted(const PromotedMessage& message) {
  if (context_.phase != GroupPhase::kDying) return;
  const uint64_t ran = std::max(message.ran_us, decided_us_);
  promotion_.pid = message.pid;
  promotion_.host_pid = message.host_pid;
  promotion_.decision_to_run_us = ran - decided_us_;
  promotion_.death_to_run_us = ran - death_->seen_us;
  context_.set_phase(GroupPhase::kPromoted);
  context_.events.on_promoted(promotion_);
  if (planned_) planned_->set_value(promotion_);
  planned_.reset();
  // Giving back much memory takes some 100 ms of a processor, which the first answers need.
  static constexpr std::chrono::milliseconds kQuiet{50};
  try {
    releasing_ = std::jthread([this] {
      run_after_others();
      std::this_thread::sleep_for(kQuiet);
      release_staging();
    });
  } catch (const std::system_error&) {  // no more threads
    release_staging();
  }
}

void DeathHandler::on_drained(const DrainedMessage& message) {
  if (context_.phase != GroupPhase::kPromoted) return;
  let_go();
  context_.events.on_drained(message.pages, message.took_us);
}

void DeathHandler::on_keeper_lost(const std::string& reason) {
  if (context_.phase != GroupPhase::kDying) return give_up(reason);
  const std::string& why = death_->why_not_exact;
  give_up("promotion failed: " + reason + (why.empty() ? "" : "; an older epoch, since " + why));
}

void DeathHandler::give_up(const std::string& reason) {
  switch (context_.phase) {
    case GroupPhase::kDone:
      return;
    case GroupPhase::kDying:
      fail_planned(reason);
      if (!death_->planned || death_->killed || was_killed_meanwhile()) return end(reason);
      moving_.reset();
      break;  // it can run on
    case GroupPhase::kStarting:
    case GroupPhase::kProtected:
      break;
    case GroupPhase::kPromoted: {
      const std::string loss =
          "the promoted process was lost before it had all of its memory: " + reason;
      context_.loss = loss;  // taken by others once the phase says so
      return end(loss);
    }
  }
  context_.set_phase(GroupPhase::kDone);
  context_.tree->detach();
  context_.events.on_unprotected(reason);
}

// By somebody else, while it stood still to be moved: what stands by elsewhere is all that is left.
bool DeathHandler::was_killed_meanwhile() const {
  return context_.root_gone || !context_.tree->stands_still();
}

void DeathHandler::fail_planned(const std::string& reason) {
  if (planned_) planned_->set_exception(std::make_exception_ptr(KeeperLost(reason)));
  planned_.reset();
}

void DeathHandler::let_go() {
  context_.set_phase(GroupPhase::kDone);
  let_old_primary_go(*context_.tree);
  moving_.reset();
}

void DeathHandler::end(const std::string& reason) {
  const GroupPhase phase = context_.phase;
  if (phase == GroupPhase::kDying || phase == GroupPhase::kPromoted) let_go();
  context_.set_phase(GroupPhase::kDone);
  const int status = death_ ? death_->wait_status : 0;
  context_.events.on_ended(reason, WIFSIGNALED(status) ? WTERMSIG(status) : 0,
                           WIFEXITED(status) ? WEXITSTATUS(status) : 0);
}

}  // namespace replpage
