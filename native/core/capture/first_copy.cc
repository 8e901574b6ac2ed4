#include "core/capture/first_copy.h"

#include <algorithm>

#include "core/base/clock.h"
#include "core/group/owner_rights.h"
#include "core/image/image_counts.h"
#include "core/link/replica_place.h"
#include "core/staging/page_stream.h"

namespace replpage {
namespace {

constexpr uint64_t kRetryNs = 2'000'000;

}  // namespace

GroupImage FirstCopy::freeze() {
  TraceTree& tree = *context_.tree;
  GroupCapture& capture = *context_.capture;
  tree.seize(context_.options.pid, context_.options.attach_always);
  Refusals refusals;
  for (const auto& [pid, process] : tree.processes()) {
    find_process_refusals(pid, refusals);
    find_clock_refusals(tree.root(), pid, refusals);
  }
  if (!refusals.empty()) throw RefusedError(std::move(refusals));
  GroupImage image;
  const auto take_in = [&] {
    check_owner(context_.options, tree);
    image = capture.capture_state({.first = true,
                                   .slow_state = true,
                                   .inject = true,
                                   .with_content = false,
                                   .refusals = &refusals,
                                   .unseen_ends = true});
    if (!refusals.empty()) throw RefusedError(std::move(refusals));
    capture.admit_new();
    capture.track_mappings(image);
  };
  // A primary that is hard to stop (one vfork after the other) is given several chances.
  StartPatience patience;
  for (;;) {
    const std::string reason = freezer_.while_stopped(kStartDeadlineUs, take_in);
    if (reason.empty()) return image;
    if (context_.root_gone || patience.is_over()) {
      throw KeeperLost("the process did not stop: " + reason);
    }
    tree.wait_events(now_ns() + kRetryNs);
  }
}

KeeperProcess FirstCopy::start_keeper() {
  if (context_.options.place) return context_.options.place->start(context_.staging);
  return spawn_keeper_of(context_.options, context_.options.pid, context_.staging);
}

uint64_t FirstCopy::copy(GroupImage& image) {
  uint64_t copied = 0;
  uint64_t total = 0;
  for (uint32_t round = 0; round < kPrecopyRoundsMax; ++round) {
    context_.capture->refresh_mappings(image);
    total = std::max(total, mapped_bytes(image));
    build_replica(image);
    const uint64_t sent = copy_round(image, copied, total);
    copied += sent;
    if (sent <= kFrozenPagesWanted * kPageSize) break;
  }
  return copied;
}

void FirstCopy::build_replica(GroupImage& image) {
  context_.keeper->send(MessageType::kBuild, ImageMessage{0, context_.staging.put(image)});
  context_.keeper->wait_reply(MessageType::kBuilt);
  context_.staging.reset();
}

uint64_t FirstCopy::copy_round(const GroupImage& image, uint64_t copied, uint64_t total) {
  KeeperLink& keeper = *context_.keeper;
  if (context_.paging) context_.paging->fit(image);
  PageStream stream(context_.staging,
                    {.send_pages =
                         [&](StagedBytes runs) {
                           if (context_.cancelled) throw CaptureCancelled();
                           keeper.send(MessageType::kPages, PagesMessage{0, runs});
                         },
                     .wait_pages_done =
                         [&, shown = copied]() mutable {
                           keeper.wait_reply(MessageType::kPagesDone);
                           context_.events.on_progress(shown += PageStream::kChunkBytes, total);
                         },
                     .sent =
                         [&](std::span<const PageRun> runs) {
                           if (context_.paging) context_.paging->note_copied(runs);
                         }});
  context_.capture->copy_running(image, stream);
  stream.finish();
  return stream.bytes_sent();
}

}  // namespace replpage
