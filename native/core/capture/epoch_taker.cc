#include "core/capture/epoch_taker.h"

#include "core/base/clock.h"
#include "core/base/descriptor_room.h"
#include "core/capture/first_copy.h"
#include "core/image/image_counts.h"

namespace replpage {
namespace {

constexpr uint64_t kSlowStatePeriodUs = 1'000'000;

}  // namespace

bool EpochTaker::take(EpochStats& stats) {
  stats.abandoned = true;
  try {
    admit_newcomers();
    stats.precopy_rounds = precopy(stats);
  } catch (const CaptureCancelled& cancelled) {
    stats.reason = cancelled.what();
    return false;
  }
  GroupImage image;
  if (!freeze_and_copy(image, stats) || !send(image, stats)) return false;
  wait_committed(stats);
  return true;
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

uint32_t EpochTaker::precopy(EpochStats& stats) {
  const std::lock_guard lock(context_.worker_mutex);
  GroupCapture& capture = *context_.capture;
  const uint64_t began = now_us();
  uint32_t rounds = 0;
  uint64_t before = UINT64_MAX;
  while (rounds < kPrecopyRoundsMax) {
    const uint64_t dirty = capture.count_dirty(running_image_, before);
    if (dirty <= kFrozenPagesWanted || dirty >= before) break;
    before = dirty;
    capture.refresh_mappings(running_image_);
    const CopyRound round = capture.copy_running(running_image_, context_.runs);
    stats.dirty_pages += round.data_pages;
    stats.zero_pages += round.zero_pages;
    ++rounds;
  }
  stats.copy_us += now_us() - began;
  return rounds;
}

bool EpochTaker::freeze_and_copy(GroupImage& image, EpochStats& stats) {
  return tracer_.call([&](TraceTree&) {
    const uint64_t began = now_us();
    CopyRound round;
    stats.reason = stop_and_copy(image, round);
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

std::string EpochTaker::stop_and_copy(GroupImage& image, CopyRound& round) {
  GroupCapture& capture = *context_.capture;
  std::string crash;
  std::string reason = freezer_.while_stopped(context_.options.freeze_deadline_us, [&] {
    crash = context_.tree->crash_being_handled();
    if (!crash.empty()) return;
    // A process forked since the pre-copy may have no tracker yet; an epoch without its memory
    // would be none.
    capture.admit_new();
    image = capture.capture_state({.slow_state = slow_state_due(),
                                   .inject = false,
                                   .with_content = true,
                                   .refusals = nullptr,
                                   .unseen_ends = !context_.options.attach_always});
    capture.admit_grown(image);
    round = capture.copy_frozen(image, context_.runs);
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
    staged_runs = context_.staging.put(list);
    staged_image = context_.staging.put(image);
    make_descriptor_room(2 * image.open_files.size());  // for a death: see HandOver
  }
  return tracer_.call([&](TraceTree&) {
    if (context_.dying) {
      stats.reason = "the primary is dying";
      return false;
    }
    context_.keeper->send(MessageType::kStage, PagesMessage{image.epoch, staged_runs});
    context_.keeper->send(MessageType::kCommit, ImageMessage{image.epoch, staged_image});
    context_.runs.clear();
    context_.epoch = image.epoch;
    running_image_ = image;
    context_.last_image = std::move(image);
    return true;
  });
}

void EpochTaker::wait_committed(EpochStats& stats) {
  const uint64_t sent = now_us();
  const auto committed = context_.keeper->wait_reply_as<CommittedMessage>(MessageType::kCommitted);
  {
    const std::lock_guard lock(context_.worker_mutex);
    // A death takes what was staged along: then it is not ours to forget.
    if (!context_.capture->cancelled()) context_.staging.reset();
  }
  stats.commit_us = now_us() - sent;
  stats.resident_bytes = committed.resident_bytes;
  stats.epoch = committed.epoch;
  stats.abandoned = false;
  stats.cpu_us += committed.apply_us;
}

}  // namespace replpage
