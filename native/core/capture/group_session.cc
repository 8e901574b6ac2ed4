#include "core/capture/group_session.h"

#include <fcntl.h>

#include <algorithm>
#include <chrono>
#include <ctime>
#include <functional>

#include "core/base/caller_rights.h"
#include "core/base/clock.h"
#include "core/base/descriptor_room.h"
#include "core/base/sys_error.h"
#include "core/base/urgency.h"
#include "core/capture/keeper_process.h"
#include "core/capture/page_stream.h"
#include "core/image/kernel_reader.h"

namespace replpage {
namespace {

// A pre-copy stops when a freeze would copy no more than this many pages (about 1 ms), when it does
// not get smaller any more, or after the last round.
constexpr uint64_t kFrozenPagesWanted = 512;
constexpr uint32_t kPrecopyRoundsMax = 4;

// Starting injects into every process, which takes longer than an epoch's freeze.
constexpr uint64_t kStartDeadlineUs = 200'000;
constexpr uint64_t kStartPatienceUs = 10'000'000;
constexpr uint64_t kRetryNs = 2'000'000;

constexpr uint64_t kSlowStatePeriodUs = 1'000'000;

uint64_t clock_us(clockid_t clock) {
  timespec time{};
  clock_gettime(clock, &time);
  return static_cast<uint64_t>(time.tv_sec) * 1'000'000u +
         static_cast<uint64_t>(time.tv_nsec) / 1000;
}

// Lets the group run again when a capture is over, also after an exception.
class RunAgain {
 public:
  explicit RunAgain(std::function<void()> let_run) : let_run_(std::move(let_run)) {}
  ~RunAgain() { let_run_(); }
  RunAgain(const RunAgain&) = delete;
  RunAgain& operator=(const RunAgain&) = delete;

 private:
  std::function<void()> let_run_;
};

uint64_t mapped_bytes(const GroupImage& image) {
  uint64_t bytes = 0;
  for (const ProcessImage& process : image.processes) {
    for (const MappingImage& mapping : process.mappings) bytes += mapping.range().bytes();
  }
  return bytes;
}

uint32_t thread_count(const GroupImage& image) {
  size_t threads = 0;
  for (const ProcessImage& process : image.processes) threads += process.threads.size();
  return static_cast<uint32_t>(threads);
}

}  // namespace

GroupSession::GroupSession(GroupOptions options, GroupEvents& events)
    : options_(std::move(options)), events_(events), tracer_jobs_([this] {
        if (TraceTree* tree = wakeable_.load()) tree->wake();
      }) {
  staging_ =
      std::make_unique<StagingArea>(StagingOptions{.memory_bytes = options_.staging_bytes_max,
                                                   .spill_bytes_max = options_.spill_bytes_max,
                                                   .spill_directory = options_.spill_directory});
  runs_ = std::make_unique<EpochRuns>(*staging_);
  tracer_ = std::thread([this] { trace(); });
}

GroupSession::~GroupSession() {
  stop();
  quit_ = true;
  tracer_jobs_.post([] {});
  tracer_.join();
}

void GroupSession::trace() {
  // While the primary stands still nothing may run in its tracer's stead, and every signal of the
  // primary waits for this thread.
  run_before_others();
  tree_ = std::make_unique<TraceTree>(static_cast<TraceObserver&>(*this));
  capture_ = std::make_unique<GroupCapture>(*tree_, options_.tracker, options_.stdio_path);
  wakeable_ = tree_.get();
  while (!quit_) {
    try {
      trace_once();
    } catch (const std::exception& error) {  // one group's trouble must not end the daemon
      give_up(std::string("tracing failed: ") + error.what());
    }
  }
  wakeable_ = nullptr;
  tree_->detach();
  capture_.reset();
  tree_.reset();
}

void GroupSession::trace_once() {
  const uint64_t promote_at_us = death_ ? death_->promote_at_us : 0;
  if (tree_->processes().empty() && promote_at_us == 0) {
    tracer_jobs_.wait();
  } else {
    tree_->wait_events(promote_at_us * 1000);
  }
  tracer_jobs_.run_pending();
  {
    const std::lock_guard lock(counters_mutex_);
    counters_ = tree_->counters();
  }
  if (!death_) return;
  if (!death_->handled) {
    handle_death();
  } else if (death_->promote_at_us != 0 && now_us() >= death_->promote_at_us) {
    promote_after_delay();
  }
}

StartReport GroupSession::start() {
  const uint64_t began = now_us();
  try {
    KernelReader::instance();  // takes a while the first time, so not while anything stands still
    GroupImage image = on_tracer([this] { return freeze_first(); });
    auto keeper = start_keeper();
    connect(keeper);
    const uint64_t copied = copy_initially(image);
    EpochStats first;
    const uint64_t patience_ends = now_us() + kStartPatienceUs;
    while (!try_epoch(first)) {
      if (root_gone_ || now_us() > patience_ends) {
        throw KeeperLost("the first epoch was not taken: " + first.reason);
      }
      std::this_thread::sleep_for(std::chrono::nanoseconds(kRetryNs));
    }
    set_phase(Phase::kProtected);
    if (!options_.attach_always) watch_exit();
    return {.epoch = epoch_,
            .tracker = capture_->tracker().value_or(TrackerKind::kUffdWp),
            .copied_bytes = copied + first.bytes,
            .copy_us = now_us() - began,
            .warnings = std::move(keeper.notes)};
  } catch (...) {
    stop();
    throw;
  }
}

GroupImage GroupSession::freeze_first() {
  tree_->seize(options_.pid, options_.attach_always);
  Refusals refusals;
  for (const auto& [pid, process] : tree_->processes()) find_process_refusals(pid, refusals);
  if (!refusals.empty()) throw RefusedError(std::move(refusals));
  GroupImage image;
  const auto capture = [&] {
    image = capture_->capture_state({.slow_state = true,
                                     .inject = true,
                                     .with_content = false,
                                     .refusals = &refusals,
                                     .unseen_ends = true});
    if (!refusals.empty()) throw RefusedError(std::move(refusals));
    capture_->admit_new();
    capture_->track_mappings(image);
  };
  // A primary that is hard to stop (one vfork after the other) is given several chances.
  const uint64_t patience_ends = now_us() + kStartPatienceUs;
  for (;;) {
    const std::string reason = while_stopped(kStartDeadlineUs, capture);
    if (reason.empty()) return image;
    if (root_gone_ || now_us() > patience_ends) {
      throw KeeperLost("the process did not stop: " + reason);
    }
    tree_->wait_events(now_ns() + kRetryNs);
  }
}

KeeperProcess GroupSession::start_keeper() {
  UniqueFd stdio;
  if (!options_.stdio_path.empty()) {
    stdio = open_with_rights(options_.stdio_path, O_WRONLY | O_CREAT | O_APPEND | O_NOFOLLOW, 0600,
                             {options_.uid, options_.gid, options_.groups});
  }
  return spawn_keeper({.executable = options_.keeper_path,
                       .name = options_.name,
                       .generation = options_.generation,
                       .primary = options_.pid,
                       .control_socket = options_.control_socket,
                       .stdio = stdio.get(),
                       .stdio_path = options_.stdio_path},
                      *staging_);
}

void GroupSession::watch_exit() {
  exit_watch_ = std::make_unique<ExitWatch>(options_.pid, [this](std::optional<int> status) {
    tracer_jobs_.post([this, status] { on_unseen_end(status); });
  });
}

void GroupSession::connect(KeeperProcess& keeper) {
  const auto on_tracer_soon = [this](auto work) { tracer_jobs_.post(std::move(work)); };
  keeper_ = std::make_unique<KeeperLink>(
      std::move(keeper.channel), std::move(keeper.pidfd),
      KeeperLink::News{
          .promoted = [=,
                       this](PromotedMessage m) { on_tracer_soon([=, this] { on_promoted(m); }); },
          .drained = [=, this](DrainedMessage m) { on_tracer_soon([=, this] { on_drained(m); }); },
          .lost =
              [=, this](std::string reason) {
                on_tracer_soon([=, this] { on_keeper_lost(reason); });
              }});
}

uint64_t GroupSession::copy_initially(GroupImage& image) {
  uint64_t copied = 0;
  uint64_t total = 0;
  const PageStream::Keeper keeper{.send_pages =
                                      [this](StagedBytes runs) {
                                        keeper_->send(MessageType::kPages, PagesMessage{0, runs});
                                      },
                                  .wait_pages_done =
                                      [&, this] {
                                        keeper_->wait_reply(MessageType::kPagesDone);
                                        events_.on_progress(copied += PageStream::kChunkBytes,
                                                            total);
                                      }};
  for (uint32_t round = 0; round < kPrecopyRoundsMax; ++round) {
    capture_->refresh_mappings(image);
    total = std::max(total, mapped_bytes(image));
    keeper_->send(MessageType::kBuild, ImageMessage{0, staging_->put(image)});
    keeper_->wait_reply(MessageType::kBuilt);
    staging_->reset();
    PageStream stream(*staging_, keeper);
    const uint64_t before = copied;
    capture_->copy_running(image, stream);
    stream.finish();
    copied = before + stream.bytes_sent();
    if (stream.bytes_sent() <= kFrozenPagesWanted * kPageSize) break;
  }
  running_image_ = image;
  return copied;
}

EpochStats GroupSession::epoch() {
  EpochStats stats;
  const uint64_t cpu_before = cpu_us();
  try_epoch(stats);
  stats.cpu_us += cpu_us() - cpu_before;  // beside what the keeper took
  return stats;
}

// Of the two threads that work for this group.
uint64_t GroupSession::cpu_us() {
  clockid_t tracer = 0;
  const bool known = pthread_getcpuclockid(tracer_.native_handle(), &tracer) == 0;
  return clock_us(CLOCK_THREAD_CPUTIME_ID) + (known ? clock_us(tracer) : 0);
}

bool GroupSession::try_epoch(EpochStats& stats) {
  stats.abandoned = true;
  try {
    admit_newcomers();
    stats.precopy_rounds = precopy(stats);
  } catch (const CaptureCancelled& cancelled) {
    stats.reason = cancelled.what();
    return false;
  }
  GroupImage image;
  if (!freeze_and_copy(image, stats)) return false;
  const uint64_t sent = now_us();
  if (!commit(image, stats)) return false;
  const auto committed = keeper_->wait_reply_as<CommittedMessage>(MessageType::kCommitted);
  {
    const std::lock_guard lock(worker_mutex_);
    // A death takes what was staged along: then it is not ours to forget.
    if (!capture_->cancelled()) staging_->reset();
  }
  stats.commit_us = now_us() - sent;
  stats.resident_bytes = committed.resident_bytes;
  stats.epoch = committed.epoch;
  stats.abandoned = false;
  stats.cpu_us += committed.apply_us;
  return true;
}

// A process that is new, or executes another program now, needs a tracker before its memory can be
// copied while it runs, and so does memory that was mapped since. Left to the next epoch when the
// primary does not stop in time.
void GroupSession::admit_newcomers() {
  on_tracer([this] {
    const bool newcomers = options_.attach_always && capture_->has_new();
    if (!newcomers && !capture_->has_grown()) return;
    while_stopped(options_.freeze_deadline_us, [this, newcomers] {
      if (newcomers && capture_->admit_new()) {
        running_image_ = capture_->capture_state({.slow_state = false,
                                                  .inject = true,
                                                  .with_content = false,
                                                  .refusals = nullptr,
                                                  .unseen_ends = false});
      } else {
        capture_->refresh_mappings(running_image_);
      }
      capture_->track_mappings(running_image_);
    });
  });
}

uint32_t GroupSession::precopy(EpochStats& stats) {
  const std::lock_guard lock(worker_mutex_);
  const uint64_t began = now_us();
  uint32_t rounds = 0;
  uint64_t before = UINT64_MAX;
  while (rounds < kPrecopyRoundsMax) {
    const uint64_t dirty = capture_->count_dirty(running_image_, before);
    if (dirty <= kFrozenPagesWanted || dirty >= before) break;
    before = dirty;
    capture_->refresh_mappings(running_image_);
    const CopyRound round = capture_->copy_running(running_image_, *runs_);
    stats.dirty_pages += round.data_pages;
    stats.zero_pages += round.zero_pages;
    ++rounds;
  }
  stats.copy_us += now_us() - began;
  return rounds;
}

bool GroupSession::freeze_and_copy(GroupImage& image, EpochStats& stats) {
  return on_tracer([&] {
    const uint64_t began = now_us();
    CopyRound round;
    std::string crash;
    stats.reason = while_stopped(options_.freeze_deadline_us, [&] {
      crash = tree_->crash_being_handled();
      if (!crash.empty()) return;
      // A process forked since the pre-copy may have no tracker yet; an epoch without its memory
      // would be none.
      capture_->admit_new();
      image = capture_->capture_state({.slow_state = slow_state_due(),
                                       .inject = false,
                                       .with_content = true,
                                       .refusals = nullptr,
                                       .unseen_ends = !options_.attach_always});
      capture_->admit_grown(image);
      round = capture_->copy_frozen(image, *runs_);
    });
    if (stats.reason.empty()) stats.reason = std::move(crash);
    stats.pause_us = now_us() - began;
    if (!stats.reason.empty()) return false;
    stats.copy_us += stats.pause_us;
    stats.dirty_pages += round.data_pages;
    stats.zero_pages += round.zero_pages;
    stats.mapped_bytes = mapped_bytes(image);
    stats.processes = static_cast<uint32_t>(image.processes.size());
    stats.threads = thread_count(image);
    return true;
  });
}

FreezeResult GroupSession::stop_group(uint64_t deadline_us) {
  if (death_) return {.frozen = false, .reason = "the primary is dying", .took_us = 0};
  if (tree_->processes().empty()) tree_->seize(options_.pid, options_.attach_always);
  return tree_->freeze(deadline_us);
}

// Runs `work` with the group stopped, and lets it run again. Returns why it cannot be done now, or
// nothing: a thread does not stop, or stands where it can neither be read nor asked.
std::string GroupSession::while_stopped(uint64_t deadline_us, const std::function<void()>& work) {
  FreezeResult frozen = stop_group(deadline_us);
  if (death_) return "the primary is dying";
  const RunAgain run_again([this] {
    // Thaws, or detaches where the group is only attached for captures.
    if (options_.attach_always) {
      tree_->thaw();
    } else {
      tree_->detach();
    }
  });
  if (!frozen.frozen) return frozen.reason;
  try {
    work();
    return {};
  } catch (const SysError& error) {
    const int passing[] = {EBUSY, ETIMEDOUT, ESRCH};
    if (std::find(std::begin(passing), std::end(passing), error.error()) == std::end(passing)) {
      throw;
    }
    return error.what();
  }
}

bool GroupSession::slow_state_due() {
  const uint64_t now = now_us();
  if (now - slow_state_us_ < kSlowStatePeriodUs) return false;
  slow_state_us_ = now;
  return true;
}

// Encoding is the worker's business; sending is the tracer thread's, so that a death sees either an
// epoch that was sent or runs that were not.
bool GroupSession::commit(GroupImage& image, EpochStats& stats) {
  StagedBytes staged_image;
  StagedBytes staged_runs;
  {
    const std::lock_guard lock(worker_mutex_);
    image.epoch = epoch_ + 1;
    image.generation = options_.generation;
    stats.bytes = staging_->used_bytes();
    PageRunList list = runs_->fitted(image);
    staged_runs = staging_->put(list);
    staged_image = staging_->put(image);
    make_descriptor_room(2 * image.open_files.size());  // for a death: see hand_over()
  }
  return on_tracer([&] {
    if (death_) {
      stats.reason = "the primary is dying";
      return false;
    }
    keeper_->send(MessageType::kStage, PagesMessage{image.epoch, staged_runs});
    keeper_->send(MessageType::kCommit, ImageMessage{image.epoch, staged_image});
    runs_->clear();
    epoch_ = image.epoch;
    running_image_ = image;
    last_image_ = std::move(image);
    return true;
  });
}

PromotionReport GroupSession::promote() {
  auto result = on_tracer([this] {
    const FreezeResult frozen = stop_group(kStartDeadlineUs);
    if (!frozen.frozen) {
      if (!death_ && !options_.attach_always) tree_->detach();
      throw KeeperLost("the primary did not stop: " + frozen.reason);
    }
    death_ = Death{.cause = DeathCause::kExit,
                   .signal = 0,
                   .status = 0,
                   .seen_us = now_us(),
                   .planned = true,
                   .killed = false,
                   .promote_at_us = 0,
                   .handled = false};
    return planned_.emplace().get_future();
  });
  return result.get();
}

void GroupSession::stop() {
  on_tracer([this] {
    if (phase_ == Phase::kDying && death_->promote_at_us != 0) {
      death_->promote_at_us = 0;
      return end(describe_death() + ", and was not to be promoted any more");
    }
    if (phase_ == Phase::kDying || phase_ == Phase::kPromoted) return;
    set_phase(Phase::kDone);
    if (!tree_) return;
    tree_->detach();
    // Gives the userfaultfds back: with one still registered the next protection of the process
    // would take its memory for tracked by its own.
    capture_ = std::make_unique<GroupCapture>(*tree_, options_.tracker, options_.stdio_path);
  });
  for (Phase phase = phase_; phase != Phase::kDone; phase = phase_) phase_.wait(phase);
  exit_watch_.reset();
  keeper_.reset();
}

TraceCounters GroupSession::trace_counters() {
  const std::lock_guard lock(counters_mutex_);
  return counters_;
}

}  // namespace replpage
