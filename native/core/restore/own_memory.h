// The mappings of this very process, which a replica starts with a copy of.
#pragma once

#include <string>
#include <vector>

#include "core/image/mapping_image.h"

namespace replpage {

struct OwnMapping {
  PageRange range;
  uint64_t inode = 0;
  std::string name;  // from '[' on, for special ones
};

// Every mapping of this process, ascending, from /proc/self/maps.
std::vector<OwnMapping> own_mappings();

// vdso, vvar and its like, ascending.
std::vector<MappingImage> own_special_mappings();

// Address of a `syscall` instruction in the vdso whose image starts at `vdso`. The vdso of this
// process has the same content. 0: there is none.
uint64_t syscall_instruction_in_vdso(uint64_t vdso);

}  // namespace replpage
