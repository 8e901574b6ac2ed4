// Sizes of a group, from its image.
#pragma once

#include <cstdint>

#include "core/image/group_image.h"

namespace replpage {

// Address space of all processes together, in bytes.
inline uint64_t mapped_bytes(const GroupImage& image) {
  uint64_t bytes = 0;
  for (const ProcessImage& process : image.processes) {
    for (const MappingImage& mapping : process.mappings) bytes += mapping.range().bytes();
  }
  return bytes;
}

inline uint32_t thread_count(const GroupImage& image) {
  size_t threads = 0;
  for (const ProcessImage& process : image.processes) threads += process.threads.size();
  return static_cast<uint32_t>(threads);
}

}  // namespace replpage
