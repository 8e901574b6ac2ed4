#include "core/session/group_session.h"

#include <chrono>
#include <ctime>
#include <thread>

#include "core/base/clock.h"
#include "core/base/sys_error.h"
#include "core/image/kernel_reader.h"
#include "core/link/replica_place.h"

namespace replpage {
namespace {

constexpr std::chrono::milliseconds kFirstEpochRetry{2};
constexpr uint64_t kStoreWaitUs = 500'000;
constexpr uint64_t kStoreOpenUs = 10'000'000;

}  // namespace

GroupSession::GroupSession(GroupOptions options, GroupEvents& events)
    : context_(std::move(options), events) {
  tracer_.call([this](TraceTree& tree) {
    context_.tree = &tree;
    renew_capture();
  });
  connect();
}

GroupSession::~GroupSession() {
  stop();
  tracer_.call([this](TraceTree& tree) {
    tree.detach();
    context_.capture.reset();
  });
}

void GroupSession::renew_capture() {
  context_.capture = std::make_unique<GroupCapture>(
      *context_.tree, context_.options.tracker, context_.options.stdio_path, context_.cancelled);
}

StartReport GroupSession::start() {
  try {
    return start_epochs();
  } catch (...) {
    stop();
    throw;
  }
}

StartReport GroupSession::start_epochs() {
  const uint64_t began = now_us();
  KernelReader::instance();  // takes a while the first time, so not while anything stands still
  open_store();
  GroupImage image = tracer_.call([this](TraceTree&) { return first_copy_.freeze(); });
  std::vector<std::string> notes = first_copy_.start_replicas();
  const uint64_t copied = first_copy_.copy(image);
  epochs_.begin(std::move(image));
  const EpochStats first = take_first_epoch();
  tracer_.call([this](TraceTree&) { become_protected(); });
  if (!context_.options.attach_always) watch_exit();
  return {.epoch = first.epoch,
          .tracker = context_.capture->tracker().value_or(TrackerKind::kUffdWp),
          .copied_bytes = copied + first.bytes,
          .copy_us = now_us() - began,
          .warnings = warnings_of(std::move(notes))};
}

// A death from now on is answered; one that has been seen was not.
void GroupSession::become_protected() {
  if (context_.root_gone) throw KeeperLost("the process ended before it was protected");
  if (context_.phase != GroupPhase::kStarting) throw KeeperLost("its replica was lost");
  context_.set_phase(GroupPhase::kProtected);
}

void GroupSession::open_store() {
  if (!context_.options.paging) return;
  context_.paging = std::make_unique<GroupPaging>(context_.options);
  if (context_.options.paging->must_open)
    context_.paging->wait_open(kStoreOpenUs, &context_.cancelled);
}

std::vector<std::string> GroupSession::warnings_of(std::vector<std::string> notes) const {
  const std::string& problem = context_.staging.spill_problem();
  if (!problem.empty()) {
    notes.push_back(problem + ": an epoch that does not fit into memory has to be given up");
  }
  return notes;
}

void GroupSession::connect() {
  context_.replicas = std::make_unique<ReplicaSet>(
      ReplicaSet::News{
          .promoted =
              [this](PromotedMessage message) {
                tracer_.post([this, message] { deaths_.on_promoted(message); });
              },
          .drained =
              [this](DrainedMessage message) {
                tracer_.post([this, message] { deaths_.on_drained(message); });
              },
          .lost =
              [this](std::string why) {
                tracer_.post([this, why] { deaths_.on_keeper_lost(why); });
              },
          .out = [this](std::string node,
                        std::string why) { context_.events.on_replica_out(node, why); },
          .in_sync = [this](std::string node,
                            uint64_t epoch) { context_.events.on_replica_in_sync(node, epoch); },
          .drilled =
              [this](std::string node, uint64_t epoch, DrilledMessage message) {
                context_.events.on_drilled(node, epoch, drill_compared_, message);
              }},
      context_.options.keeper_answer_ms, context_.options.records_outs);
}

void GroupSession::interrupt() {
  context_.cancelled = true;
  context_.replicas->stop_waiting();
}

EpochStats GroupSession::take_first_epoch() {
  EpochStats first;
  StartPatience patience;
  while (!epochs_.take(first)) {
    if (context_.cancelled) throw CaptureCancelled();
    if (context_.root_gone || patience.is_over()) {
      throw KeeperLost("the first epoch was not taken: " + first.reason);
    }
    std::this_thread::sleep_for(kFirstEpochRetry);
  }
  return first;
}

void GroupSession::watch_exit() {
  exit_watch_ =
      std::make_unique<ExitWatch>(context_.options.pid, [this](std::optional<int> status) {
        tracer_.post([this, status] { deaths_.on_unseen_end(status); });
      });
}

EpochStats GroupSession::epoch() {
  EpochStats stats;
  take_in_joining();
  check_for_drill();
  const auto used_us = [this] { return clock_us(CLOCK_THREAD_CPUTIME_ID) + tracer_.cpu_us(); };
  const uint64_t before = used_us();
  epochs_.take(stats);
  stats.cpu_us += used_us() - before;  // beside what the keeper took
  return stats;
}

PromotionReport GroupSession::promote(const std::string* node) {
  context_.hurried = false;
  // So that little is left to be sent while everything stands still.
  if (node != nullptr ? !node->empty() : !context_.replicas->here()) (void)epoch();
  return tracer_.call([this, node](TraceTree&) { return deaths_.order_promotion(node); }).get();
}

// A part of it at a time.
void GroupSession::check_for_drill() {
  if (!drill_ || drill_check_->go_on()) return;
  ReplicaJoiner::Joining drill = std::move(*std::exchange(drill_, std::nullopt));
  drill_compared_ = drill_check_->compared_pages();
  const std::string problem = drill_check_->problem();
  drill_check_.reset();
  if (problem.empty()) {
    context_.replicas->add_drill(std::move(drill.home), std::move(drill.keeper), drill.drill_us);
    epochs_.begin_joining();
    return;
  }
  if (drill.home.place) drill.home.place->end();
  context_.events.on_drilled(drill.home.node, 0, drill_compared_, {.problem = problem});
}

bool GroupSession::join(size_t rank, ReplicaHome home) {
  return joiner_.start(
      rank, std::move(home),
      [this](const ReplicaHome& at) {
        return start_keeper_at(at, context_.options, context_.options.pid, context_.staging);
      },
      [this](const std::string& node, const std::string& why) {
        context_.events.on_replica_out(node, why);
      });
}

bool GroupSession::drill(const ReplicaOptions& drill, ReplicaHome home, uint64_t run_us) {
  return joiner_.start(
      0, std::move(home),
      [this, drill](const ReplicaHome& at) {
        return start_keeper_at(at, drill, context_.options.pid, context_.staging);
      },
      [this](const std::string& node, const std::string& why) {
        context_.events.on_drilled(node, 0, 0, {.problem = why});
      },
      run_us);
}

// One at a time: what was there before it came is given to whoever joins alone.
void GroupSession::take_in_joining() {
  if (drill_ || context_.replicas->has_joining()) return;
  auto come = joiner_.take();
  if (!come) return;
  if (come->drill_us != 0) {
    drill_check_.emplace(context_, come->home.node);
    drill_ = std::move(come);
    return;
  }
  context_.replicas->add(come->rank, std::move(come->home), std::move(come->keeper),
                         ReplicaState::kJoining);
  epochs_.begin_joining();
}

// Whoever owns us may keep us for long, and the group's next protection has one of its own.
void GroupSession::give_staging_back() {
  const std::lock_guard lock(context_.worker_mutex);
  try {
    context_.staging.release();
  } catch (const SysError&) {  // the spill file keeps its length until it is closed
  }
}

std::string GroupSession::stop() {
  bool dropped = false;
  tracer_.call([this, &dropped](TraceTree& tree) {
    const GroupPhase phase = context_.phase;
    if (deaths_.cancel_delayed()) return;
    if (phase == GroupPhase::kDying || phase == GroupPhase::kPromoted) return;
    dropped = phase != GroupPhase::kDone;
    context_.set_phase(GroupPhase::kDone);
    tree.detach();
    // Gives the userfaultfds back: with one still registered the next protection of the process
    // would take its memory for tracked by its own.
    renew_capture();
  });
  if (!dropped) context_.replicas->insist_on_drain();
  for (GroupPhase phase = context_.phase; phase != GroupPhase::kDone; phase = context_.phase) {
    context_.phase.wait(phase);
  }
  exit_watch_.reset();
  joiner_.stop();
  if (drill_ && drill_->home.place) drill_->home.place->end();
  drill_.reset();
  context_.replicas->end(dropped);
  give_staging_back();
  if (context_.paging && dropped) context_.paging->remove_generation(kStoreWaitUs);
  context_.paging.reset();
  return std::exchange(context_.loss, {});
}

}  // namespace replpage
