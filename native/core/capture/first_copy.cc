#include "core/capture/first_copy.h"

#include <algorithm>
#include <iterator>

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

std::vector<std::string> FirstCopy::start_replicas() {
  std::vector<std::string> notes;
  const auto& homes = context_.options.homes;
  for (size_t rank = 0; rank < homes.size(); ++rank) {
    KeeperProcess keeper =
        start_keeper_at(homes[rank], context_.options, context_.options.pid, context_.staging);
    std::ranges::move(keeper.notes, std::back_inserter(notes));
    context_.replicas->add(rank, homes[rank], std::move(keeper), ReplicaState::kBuilding);
  }
  return notes;
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
  context_.replicas->build(ImageMessage{0, context_.staging.put(image)});
  context_.staging.reset();
}

uint64_t FirstCopy::copy_round(const GroupImage& image, uint64_t copied, uint64_t total) {
  ReplicaSet& replicas = *context_.replicas;
  if (context_.paging) context_.paging->fit(image);
  PageStream stream(context_.staging, {.send_pages =
                                           [&](StagedBytes runs) {
                                             if (context_.cancelled) throw CaptureCancelled();
                                             replicas.send_pages(PagesMessage{0, runs});
                                           },
                                       .wait_pages_done =
                                           [&, shown = copied]() mutable {
                                             replicas.wait_pages_done();
                                             context_.events.on_progress(
                                                 shown += PageStream::kChunkBytes, total);
                                           },
                                       .sent =
                                           [&](std::span<const PageRun> runs) {
                                             if (context_.paging)
                                               context_.paging->note_copied(runs);
                                           }});
  context_.capture->copy_running(image, stream);
  stream.finish();
  return stream.bytes_sent();
}

}  // namespace replpage
