// What must change for one address space to become another: pure, no system calls.
#pragma once

#include <vector>

#include "core/image/mapping_image.h"

namespace replpage {

struct MappingStep {
  enum class Kind : uint8_t { kUnmap, kMap, kProtect, kAdvise };
  Kind kind{};
  PageRange range;
  const MappingImage* next = nullptr;  // null for kUnmap; points into the `next` given
  uint32_t flags_before = 0;           // kAdvise
  int32_t key_before = 0;              // kProtect
};

// Whether the mapping is kept up by moving (vdso, vvar) or the same everywhere (vsyscall), so that
// no plan mentions it.
bool is_special(MappingKind kind);

// Steps from `now` to `next`, both ascending: first what is unmapped, then the others, ascending.
// What has the same memory behind it is never unmapped, since its content is not sent again.
std::vector<MappingStep> plan_mappings(const std::vector<MappingImage>& now,
                                       const std::vector<MappingImage>& next);

}  // namespace replpage
