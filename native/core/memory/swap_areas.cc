#include "core/memory/swap_areas.h"

#include <algorithm>

#include "core/base/procfs.h"

namespace replpage {

bool swap_in_use() {
  const auto areas = read_proc("/proc/swaps");  // one heading, then a line each
  return !areas || std::count(areas->begin(), areas->end(), '\n') > 1;
}

}  // namespace replpage
