// Takes epochs: pre-copy while the primary runs, stop-and-copy, commit.
#pragma once

#include <cstdint>
#include <optional>

#include "core/capture/slow_look.h"
#include "core/group/group_context.h"
#include "core/group/group_freezer.h"
#include "core/group/tracer_thread.h"

namespace replpage {

class EpochTaker {
 public:
  EpochTaker(GroupContext& context, GroupFreezer& freezer, TracerThread& tracer)
      : context_(context), freezer_(freezer), tracer_(tracer) {}

  // `image`: mappings as the first copy last saw them.
  void begin(GroupImage image) { running_image_ = std::move(image); }

  // Worker thread. A replica has joined, and nobody else is joining: with the next epochs it gets
  // all that there is.
  void begin_joining();

  // Worker thread. True when the replica holds one more epoch; else `stats.reason` says what stood
  // in the way, and the replica is still at the last one. Throws KeeperLost, SysError,
  // RefusedError.
  bool take(EpochStats& stats);

  // Worker thread, between epochs. Throws SysError (ENOTSUP: the group has no paging).
  PagingReport page(const PagingOrder& order);
  std::vector<InspectedMapping> inspect(size_t cells) const;

 private:
  // Worker thread.
  bool take_or_throw(EpochStats& stats);
  void keep_staging_small(bool full);
  [[nodiscard]] bool fits_a_pause(uint64_t dirty_pages) const;
  [[nodiscard]] bool is_enough(uint32_t rounds, uint64_t dirty_pages, uint64_t before,
                               bool throttled) const;
  void check_what_is_left(uint64_t dirty_pages) const;
  void admit_newcomers();
  void give_joining_more();
  uint32_t precopy(EpochStats& stats);
  bool freeze_and_copy(GroupImage& image, EpochStats& stats);
  bool send(GroupImage& image, EpochStats& stats);
  void wait_committed(EpochStats& stats);
  // Tracer thread.
  std::string stop_and_copy(GroupImage& image, CopyRound& round, uint64_t deadline_us);
  bool slow_state_due();

  GroupContext& context_;
  GroupFreezer& freezer_;
  TracerThread& tracer_;
  SlowLook slow_look_{context_};
  GroupImage running_image_;  // mappings as the pre-copy last saw them
  uint64_t slow_state_us_ = 0;
  // Of a replica that joins: how much of the rest it was given.
  std::optional<GroupCapture::CopyCursor> joining_;
  bool joining_has_all_ = false;
};

}  // namespace replpage
