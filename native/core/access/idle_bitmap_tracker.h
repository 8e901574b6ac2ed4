// The kernel's idle page tracking: every page frame of the process is made idle, and asked later
// whether it still is. Reclaim is not misled by it, so it may be used with swap as well. Frames
// that are idle for another user of the bitmap are not idle for long: the machine has only one.
#pragma once

#include <memory>
#include <vector>

#include "core/access/access_tracker.h"
#include "core/access/idle_bitmap.h"

namespace replpage {

class IdleBitmapTracker : public AccessTracker {
 public:
  // Why it does not work on this machine, tried on pages of our own; empty when it does.
  static std::string refusal();

  IdleBitmapTracker(pid_t host_pid, std::unique_ptr<IdleBitmap> bitmap);
  [[nodiscard]] AccessTrackerKind kind() const override { return AccessTrackerKind::kIdleBitmap; }
  AccessSample sample(std::span<const MappingImage> mappings, const Visit& visit) override;

 private:
  // Pages that one frame's bit speaks for.
  struct Item {
    uint64_t frame = 0;
    uint64_t address = 0;
    uint64_t pages = 1;
  };
  void collect(uint64_t start, std::span<const uint64_t> entries);
  [[nodiscard]] bool heads_huge_page(uint64_t frame) const;
  void look(AccessSample& sample, const Visit& visit);

  pid_t pid_;
  std::unique_ptr<IdleBitmap> bitmap_;
  UniqueFd frame_flags_;  // not valid where they cannot be read
  std::vector<Item> items_;
  std::vector<uint64_t> frames_;
};

}  // namespace replpage
