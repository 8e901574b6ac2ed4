// Reads pages from a descriptor that may have holes: a process's memory, a memfd.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

namespace replpage {

inline constexpr uint32_t kChunkPages = 256;

struct PagesRead {
  uint32_t zero = 0, unreadable = 0;
};

// Reads `pages` pages from `offset` on and gives them in parts of at most kChunkPages: `visit` is
// told which page the part begins with, and has its content until it returns. Pages that cannot be
// read (nothing is mapped there any more, the process is gone) and pages that are all zero lie
// between the parts.
PagesRead read_pages(int file, uint64_t offset, uint32_t pages, std::vector<uint8_t>& room,
                     const std::function<void(uint32_t first, std::span<const uint8_t>)>& visit);

}  // namespace replpage
