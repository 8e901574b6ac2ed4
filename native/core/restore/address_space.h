// The mappings of one replica process, brought from image to image by batches.
#pragma once

#include <set>
#include <vector>

#include "core/image/mapping_image.h"
#include "core/restore/cold_guard.h"
#include "core/restore/mapper.h"
#include "core/restore/mapping_plan.h"
#include "core/restore/replica.h"

namespace replpage {

class AddressSpace {
 public:
  struct Region {
    MappingImage image;
    bool written = false;  // pages were written since it was mapped
    bool guarded = false;  // by guard(), from one end to the other
  };

  explicit AddressSpace(std::vector<MappingImage> special) : special_(std::move(special)) {}

  // Makes the mappings of `process` those of `next`. `stub` is left alone and must not overlap.
  // Throws SysError naming what could not be mapped.
  void shape(ReplicaProcess& process, const std::vector<MappingImage>& next, PageRange stub,
             const MappedSources& sources);

  [[nodiscard]] std::vector<Region>& regions() { return regions_; }
  [[nodiscard]] const std::vector<Region>& regions() const { return regions_; }
  [[nodiscard]] const std::vector<MappingImage>& special() const { return special_; }
  // Pages that are in the page store only.
  [[nodiscard]] LazyRanges& cold() { return cold_; }
  [[nodiscard]] const LazyRanges& cold() const { return cold_; }
  [[nodiscard]] ColdGuard& guard() { return guard_; }
  // Before anything of the region gets cold.
  void cover(ReplicaProcess& process, Region& region);

  // Address of a `syscall` instruction in code that stays, 0: none known.
  [[nodiscard]] uint64_t syscall_instruction() const;

 private:
  void move_special(ReplicaProcess& process, const std::vector<MappingImage>& next, PageRange stub);
  void allocate_keys(ReplicaProcess& process, const std::vector<MappingImage>& next);
  [[nodiscard]] bool is_shaped(const std::vector<MappingImage>& next) const;
  void keep_regions(ReplicaProcess& process, const std::vector<MappingImage>& next);

  void forget_cold(const std::vector<MappingStep>& steps);

  LazyRanges cold_;
  ColdGuard guard_;
  std::vector<Region> regions_;        // without special ones, ascending
  std::vector<MappingImage> special_;  // ascending
  std::set<int> keys_;                 // protection keys that are allocated
};

}  // namespace replpage
