#include "core/capture/epoch_taker.h"

#include <algorithm>
#include <map>
#include <string>

#include "core/base/clock.h"
#include "core/base/descriptor_room.h"
#include "core/base/not_this_time.h"
#include "core/base/sys_error.h"
#include "core/capture/first_copy.h"
#include "core/capture/throttle.h"
#include "core/group/death_cause.h"
#include "core/group/owner_rights.h"
#include "core/image/image_counts.h"
#include "core/image/kernel_reader.h"

namespace replpage {
namespace {

constexpr uint64_t kSlowStatePeriodUs = 1'000'000;
// What no copy reaches on machines of today (4 GB/s), under freeze.
constexpr uint64_t kPagesPerUs = 1;
// Rounds of a pre-copy while too much is left for a pause, and each copies a tenth less at least.
constexpr uint32_t kPatientRoundsMax = 12;
constexpr uint64_t kShrinkShare = 10;
// What copies reach as a rule (1.3 GB/s), with room for what is written meanwhile.
constexpr uint64_t kUsPerPageWithRoom = 3;
// It is worse for a program to stand still for longer than to do so more often.
constexpr uint64_t kThrottleStopUs = 40'000;
// For a replica that joins, with each epoch: copied in 50 ms.
constexpr uint64_t kJoiningBytes = 64ull << 20;
// Runs of epochs that were given up; each takes some 40 bytes here and in the message.
constexpr size_t kWaitingRunsMax = 1'000'000;

void check_time(uint64_t deadline_us) {
  if (now_us() > deadline_us)
    throw NotThisTime("the state of the group is not read within the longest pause (--max-pause)");
}

}  // namespace

bool EpochTaker::take(EpochStats& stats) {
  stats.abandoned = true;
  bool full = false;
  try {
    if (take_or_throw(stats)) return true;
  } catch (const CaptureCancelled& cancelled) {
    stats.reason = cancelled.what();
  } catch (const NotThisTime& reason) {
    stats.reason = reason.what();
  } catch (const SysError& error) {
    full = error.error() == ENOSPC || error.error() == EDQUOT;
    if (!full) throw;
    stats.reason = error.what();
  }
  keep_staging_small(full);
  return false;
}

bool EpochTaker::take_or_throw(EpochStats& stats) {
  slow_look_.look();
  admit_newcomers();
  give_joining_more();
  stats.precopy_rounds = precopy(stats);
  GroupImage image;
  if (!freeze_and_copy(image, stats) || !send(image, stats)) return false;
  wait_committed(stats);
  stats.primary_bytes = slow_look_.primary_bytes();
  return true;
}

PagingReport EpochTaker::page(const PagingOrder& order) {
  if (!context_.paging) throw SysError("page the replica of a group", ENOTSUP);
  GroupPaging& paging = *context_.paging;
  std::map<int32_t, pid_t> host_pids;
  {
    const std::lock_guard lock(context_.worker_mutex);
    for (const ProcessImage& process : running_image_.processes) {
      const pid_t host_pid = context_.capture->host_pid_of(process.pid);
      if (host_pid != 0) host_pids[process.pid] = host_pid;
    }
  }
  // Without the lock: this takes milliseconds, and a death would wait for it.
  PagingReport report = paging.turn(running_image_, host_pids, order);
  context_.replicas->wait_room();  // nor does a death wait for the lock meanwhile
  const std::lock_guard lock(context_.worker_mutex);
  const std::vector<PageRun> wanted = paging.take_wanted_back();
  if (!wanted.empty()) context_.capture->copy_again(wanted);
  if (auto store = paging.store_for_replica()) {
    const int directory = store->directory.get();
    if (const auto keeper = context_.replicas->here()) {
      keeper->send(MessageType::kStore, std::move(store->message), {&directory, 1});
    }
  }
  return report;
}

std::vector<InspectedMapping> EpochTaker::inspect(size_t cells) const {
  if (!context_.paging) throw SysError("inspect a replica that holds everything", ENOTSUP);
  return context_.paging->inspect(running_image_, cells);
}

// What an epoch that was given up has copied serves the next one, but not without end.
void EpochTaker::keep_staging_small(bool full) {
  const std::lock_guard lock(context_.worker_mutex);
  StagingArea& staging = context_.staging;
  const bool small = staging.used_bytes() < staging.memory_bytes() / 2 &&
                     context_.runs.all().size() < kWaitingRunsMax;
  if (context_.cancelled || (small && !full)) return;
  context_.capture->copy_again(context_.runs.all());
  context_.runs.clear();
  staging.reset();
}

// A process that is new, or executes another program now, needs a tracker before its memory can be
// copied while it runs, and so does memory that was mapped since. Left to the next epoch when the
// primary does not stop in time.
void EpochTaker::admit_newcomers() {
  tracer_.call([this](TraceTree&) {
    GroupCapture& capture = *context_.capture;
    const bool newcomers = context_.options.attach_always && capture.has_new();
    if (!newcomers && !capture.has_grown()) return;
    freezer_.while_stopped(context_.options.freeze_deadline_us, [&] {
      if (newcomers && capture.admit_new()) {
        running_image_ = capture.capture_state({.slow_state = false,
                                                .inject = true,
                                                .with_content = false,
                                                .refusals = nullptr,
                                                .unseen_ends = false});
      } else {
        capture.refresh_mappings(running_image_);
      }
      capture.track_mappings(running_image_);
    });
  });
}

void EpochTaker::begin_joining() {
  joining_.emplace();
  joining_has_all_ = false;
}

// A replica that joins has all that there was when every part of it was in an epoch that it got;
// what was written meanwhile was in them too.
void EpochTaker::give_joining_more() {
  const std::lock_guard lock(context_.worker_mutex);
  if (!context_.replicas->has_joining()) {
    joining_.reset();
    joining_has_all_ = false;
  } else if (joining_ && !joining_has_all_) {
    joining_has_all_ = !context_.capture->copy_again_from(*joining_, kJoiningBytes);
  }
}

uint32_t EpochTaker::precopy(EpochStats& stats) {
  const std::lock_guard lock(context_.worker_mutex);
  GroupCapture& capture = *context_.capture;
  const uint64_t began = now_us();
  std::optional<Throttle> throttle;
  uint32_t rounds = 0;
  for (uint64_t before = UINT64_MAX;; ++rounds) {
    const uint64_t dirty = capture.count_dirty(running_image_, before);
    if (is_enough(rounds, dirty, before, throttle.has_value())) {
      stats.copy_us += now_us() - began;
      if (throttle) stats.throttled_us = throttle->stood_us();  // also where it was in vain
      check_what_is_left(dirty);
      return rounds;
    }
    const bool hardly_less = before != UINT64_MAX && dirty > before / 2;
    if (!throttle && hardly_less && !fits_a_pause(dirty)) {
      const uint64_t stop_us = std::min(kThrottleStopUs, context_.options.max_pause_us);
      throttle.emplace(context_, freezer_, tracer_, stop_us);
      stats.pause_us = stop_us;
    }
    before = dirty;
    capture.refresh_mappings(running_image_);
    const CopyRound round = capture.copy_running(running_image_, context_.runs);
    stats.dirty_pages += round.data_pages;
    stats.zero_pages += round.zero_pages;
  }
}

bool EpochTaker::fits_a_pause(uint64_t dirty_pages) const {
  return dirty_pages * kUsPerPageWithRoom <= context_.options.max_pause_us;
}

// Further rounds are worth it as long as they make a difference. What is too much for a pause is
// given up only when it did not get less although the primary was slowed down.
bool EpochTaker::is_enough(uint32_t rounds, uint64_t dirty_pages, uint64_t before,
                           bool throttled) const {
  if (dirty_pages <= kFrozenPagesWanted) return true;
  if (fits_a_pause(dirty_pages)) return dirty_pages >= before || rounds >= kPrecopyRoundsMax;
  const bool shrinks = dirty_pages < before - before / kShrinkShare;
  return rounds >= kPatientRoundsMax || (throttled && !shrinks);
}

// The primary is not stopped for a copy that cannot be over in time, however fast it goes. What the
// pre-copy took says little: the running program was in its way.
void EpochTaker::check_what_is_left(uint64_t dirty_pages) const {
  const uint64_t max_us = context_.options.max_pause_us;
  if (dirty_pages / kPagesPerUs <= max_us) return;
  const uint64_t needed_ms = (dirty_pages * kUsPerPageWithRoom / 1000 / 50 + 1) * 50;
  throw NotThisTime(
      "it writes faster than its memory is copied: " + std::to_string(dirty_pages) +
      " pages are left, too many for a longest pause of " + std::to_string(max_us / 1000) +
      " ms; if it may stand still so long, try --max-pause " + std::to_string(needed_ms) + "ms");
}

bool EpochTaker::freeze_and_copy(GroupImage& image, EpochStats& stats) {
  return tracer_.call([&](TraceTree&) {
    const uint64_t began = now_us();
    CopyRound round;
    stats.reason = stop_and_copy(image, round, began + context_.options.max_pause_us);
    const uint64_t pause_us = now_us() - began;
    stats.pause_us = std::max(stats.pause_us, pause_us);
    if (!stats.reason.empty()) return false;
    stats.copy_us += pause_us;
    stats.dirty_pages += round.data_pages;
    stats.zero_pages += round.zero_pages;
    stats.mapped_bytes = mapped_bytes(image);
    stats.processes = static_cast<uint32_t>(image.processes.size());
    stats.threads = thread_count(image);
    return true;
  });
}

std::string EpochTaker::stop_and_copy(GroupImage& image, CopyRound& round, uint64_t deadline_us) {
  GroupCapture& capture = *context_.capture;
  Refusals refusals;
  std::string crash;
  std::string reason = freezer_.while_stopped(context_.options.freeze_deadline_us, [&] {
    crash = context_.tree->crash_being_handled();
    if (!crash.empty()) return;
    if (context_.out_of_reach) throw RefusedError({*context_.out_of_reach});
    // Nobody saw what was executed while nobody was attached.
    if (!context_.options.attach_always) check_owner(context_.options, *context_.tree);
    // A process forked since the pre-copy may have no tracker yet; an epoch without its memory
    // would be none. Nor is anything of its state known that only it can tell.
    const bool admitted = capture.admit_new();
    const bool slow = slow_state_due();
    image = capture.capture_state({.slow_state = slow,
                                   .inject = admitted || (slow && !KernelReader::instance()),
                                   .with_content = true,
                                   .refusals = &refusals,
                                   .unseen_ends = !context_.options.attach_always});
    if (!refusals.empty()) throw RefusedError(std::move(refusals));
    crash = crash_at_hand(image.processes.front());
    if (!crash.empty()) return;
    check_time(deadline_us);
    capture.admit_grown(image);
    FrozenRuns runs(context_.runs, deadline_us);
    round = capture.copy_frozen(image, runs);
  });
  return reason.empty() ? crash : reason;
}

bool EpochTaker::slow_state_due() {
  const uint64_t now = now_us();
  if (now - slow_state_us_ < kSlowStatePeriodUs) return false;
  slow_state_us_ = now;
  return true;
}

// Encoding is the worker's business; sending is the tracer thread's, so that a death sees either an
// epoch that was sent or runs that were not.
bool EpochTaker::send(GroupImage& image, EpochStats& stats) {
  StagedBytes staged_image;
  StagedBytes staged_runs;
  {
    const std::lock_guard lock(context_.worker_mutex);
    image.epoch = context_.epoch + 1;
    image.generation = context_.options.generation;
    stats.bytes = context_.staging.used_bytes();
    PageRunList list = context_.runs.fitted(image);
    if (context_.paging) context_.paging->add_cold_runs(image, list);
    staged_runs = context_.staging.put(list);
    staged_image = context_.staging.put(image);
    make_descriptor_room(2 * image.open_files.size());  // for a death: see HandOver
  }
  context_.replicas->wait_room();  // the tracer thread waits for nobody
  return tracer_.call([&](TraceTree&) {
    if (context_.dying) {
      stats.reason = "the primary is dying";
      return false;
    }
    context_.replicas->send_epoch(PagesMessage{image.epoch, staged_runs},
                                  ImageMessage{image.epoch, staged_image});
    context_.runs.clear();
    context_.epoch = image.epoch;
    running_image_ = image;
    context_.last_image = std::move(image);
    if (context_.paging) context_.paging->note_sent();
    return true;
  });
}

void EpochTaker::wait_committed(EpochStats& stats) {
  const uint64_t sent = now_us();
  const CommittedMessage committed = context_.replicas->wait_committed();
  {
    const std::lock_guard lock(context_.worker_mutex);
    // A death takes what was staged along: then it is not ours to forget.
    if (!context_.cancelled) context_.staging.reset();
    if (context_.paging) context_.paging->note_committed();
  }
  if (joining_has_all_) context_.replicas->complete();
  stats.commit_us = now_us() - sent;
  stats.resident_bytes = committed.resident_bytes;
  stats.cold_bytes = committed.cold_bytes;
  stats.epoch = committed.epoch;
  stats.abandoned = false;
  stats.cpu_us += committed.apply_us;
}

}  // namespace replpage
