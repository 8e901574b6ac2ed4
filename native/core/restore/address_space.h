// The mappings of one replica process, brought from image to image by batches.
#pragma once

#include <set>
#include <vector>

#include "core/image/mapping_image.h"
#include "core/restore/mapping_plan.h"
#include "core/restore/replica.h"
#include "core/restore/shared_objects.h"

namespace replpage {

// vdso, vvar and its like of this very process, from /proc/self/maps, ascending. A replica starts
// with the keeper's.
std::vector<MappingImage> own_special_mappings();

// Every mapping of this process, ascending.
std::vector<PageRange> own_mappings();

// Address of a `syscall` instruction in the vdso whose image starts at `vdso`. The vdso of this
// process has the same content.
uint64_t syscall_instruction_in_vdso(uint64_t vdso);

class AddressSpace {
 public:
  struct Region {
    MappingImage image;
    bool written = false;  // pages were written since it was mapped
  };

  explicit AddressSpace(std::vector<MappingImage> special) : special_(std::move(special)) {}

  // Makes the mappings of `process` those of `next`. `stub` is left alone and must not overlap.
  // Throws SysError naming what could not be mapped.
  void shape(ReplicaProcess& process, const std::vector<MappingImage>& next, PageRange stub,
             const SharedObjects& objects);

  [[nodiscard]] std::vector<Region>& regions() { return regions_; }
  [[nodiscard]] const std::vector<Region>& regions() const { return regions_; }
  [[nodiscard]] const std::vector<MappingImage>& special() const { return special_; }

  // Address of a `syscall` instruction in code that stays, 0: none known.
  [[nodiscard]] uint64_t syscall_instruction() const;

 private:
  void move_special(ReplicaProcess& process, const std::vector<MappingImage>& next, PageRange stub);
  void allocate_keys(ReplicaProcess& process, const std::vector<MappingImage>& next);
  void keep_regions(const std::vector<MappingImage>& next);

  std::vector<Region> regions_;        // without special ones, ascending
  std::vector<MappingImage> special_;  // ascending
  std::set<int> keys_;                 // protection keys that are allocated
};

}  // namespace replpage
