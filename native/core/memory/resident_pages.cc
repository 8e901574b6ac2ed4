#include "core/memory/resident_pages.h"

#include <algorithm>
#include <cstdio>
#include <string>

#include "core/base/procfs.h"

namespace replpage {

ResidentPages resident_pages(pid_t pid) {
  const auto text = read_proc("/proc/" + std::to_string(pid) + "/statm");
  uint64_t size = 0, resident = 0, shared = 0;
  if (!text || std::sscanf(text->c_str(), "%lu %lu %lu", &size, &resident, &shared) != 3) return {};
  shared = std::min(shared, resident);
  return {.own = resident - shared, .shared = shared};
}

}  // namespace replpage
