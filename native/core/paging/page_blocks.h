// The state of the pages of one process, in blocks of 512 pages that exist where a page is resident
// or cold. Part of PageTable.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <map>
#include <memory>

#include "core/memory/page_ranges.h"

namespace replpage {

// Flags of a page. None of the first two: absent.
inline constexpr uint8_t kPageResident = 1;
inline constexpr uint8_t kPageCold = 2;
inline constexpr uint8_t kPageStored = 4;     // has a location: all cold ones, and some resident
inline constexpr uint8_t kPagePending = 8;    // resident, being written to the store
inline constexpr uint8_t kPageEligible = 16;  // its mapping may be paged
inline constexpr uint8_t kPageAgain = 32;     // cold, and touched since or not eligible any more

inline constexpr uint8_t kCandidateMask =
    kPageResident | kPageEligible | kPagePending | kPageStored;
inline constexpr uint8_t kCandidate = kPageResident | kPageEligible;

// Resident, and leaves with one of the next epochs unless it is written.
constexpr bool is_leaving(uint8_t flags) {
  return (flags & kPageResident) != 0 && (flags & (kPagePending | kPageStored)) != 0;
}

constexpr bool is_candidate(uint8_t flags) { return (flags & kCandidateMask) == kCandidate; }

struct PageBlock {
  static constexpr size_t kPages = 512;
  using Locations = std::array<uint64_t, kPages>;

  std::array<uint8_t, kPages> flags{};
  std::array<uint8_t, kPages> written{};  // samples ago
  std::array<uint8_t, kPages> touched{};
  std::unique_ptr<Locations> locations;  // null: none is stored
  uint16_t resident = 0, cold = 0, candidates = 0, stored = 0;

  [[nodiscard]] bool empty() const { return resident == 0 && cold == 0; }
};

inline constexpr uint64_t kBlockBytes = PageBlock::kPages * kPageSize;

class PageBlocks {
 public:
  // Calls visit(block, first page's address, first, last) for the pages [first, last) of each block
  // that has some of the range, ascending. Blocks and regions that are empty afterwards are freed.
  template <class Visit>
  void visit(PageRange range, Visit&& visit) {
    for (auto at = regions_.lower_bound(range.start / kRegionBytes);
         at != regions_.end() && at->first * kRegionBytes < range.end;) {
      Region& region = *at->second;
      visit_region(region, at->first * kRegionBytes, range, visit);
      at = region.used == 0 ? regions_.erase(at) : std::next(at);
    }
    last_ = nullptr;
  }

  template <class Visit>
  void visit_const(PageRange range, Visit&& visit) const {
    for (auto at = regions_.lower_bound(range.start / kRegionBytes);
         at != regions_.end() && at->first * kRegionBytes < range.end; ++at) {
      const uint64_t base = at->first * kRegionBytes;
      const PageRange part = clipped(range, base, kRegionBytes);
      for (uint64_t i = (part.start - base) / kBlockBytes; i * kBlockBytes < part.end - base; ++i) {
        const PageBlock* const block = at->second->blocks[i].get();
        const uint64_t start = base + i * kBlockBytes;
        const PageRange pages = clipped(part, start, kBlockBytes);
        if (block == nullptr) continue;
        visit(*block, start, (pages.start - start) / kPageSize, (pages.end - start) / kPageSize);
      }
    }
  }

  // The block that has the address, made where there is none.
  PageBlock& at(uint64_t address) {
    const uint64_t number = address / kRegionBytes;
    if (last_ == nullptr || last_number_ != number) {
      auto& region = regions_[number];
      if (!region) region = std::make_unique<Region>();
      last_ = region.get();
      last_number_ = number;
    }
    auto& block = last_->blocks[address % kRegionBytes / kBlockBytes];
    if (!block) {
      block = std::make_unique<PageBlock>();
      ++last_->used;
    }
    return *block;
  }

  [[nodiscard]] uint64_t memory_bytes() const {
    uint64_t bytes = 0;
    visit_const({0, UINT64_MAX}, [&bytes](const PageBlock& block, uint64_t, size_t, size_t) {
      bytes += sizeof block + (block.locations ? sizeof *block.locations : 0);
    });
    return bytes + regions_.size() * (sizeof(Region) + kMapNodeBytes);
  }

 private:
  static constexpr uint64_t kRegionBytes = 512 * kBlockBytes;  // 1 GiB
  static constexpr uint64_t kMapNodeBytes = 64;
  struct Region {
    std::array<std::unique_ptr<PageBlock>, 512> blocks;
    uint32_t used = 0;
  };

  // An end of UINT64_MAX is none.
  static PageRange clipped(PageRange range, uint64_t base, uint64_t bytes) {
    return {std::max(range.start, base), std::min(range.end, base + bytes)};
  }

  template <class Visit>
  static void visit_region(Region& region, uint64_t base, PageRange range, Visit&& visit) {
    const PageRange part = clipped(range, base, kRegionBytes);
    for (uint64_t i = (part.start - base) / kBlockBytes; i * kBlockBytes < part.end - base; ++i) {
      auto& block = region.blocks[i];
      if (!block) continue;
      const uint64_t start = base + i * kBlockBytes;
      const PageRange pages = clipped(part, start, kBlockBytes);
      visit(*block, start, (pages.start - start) / kPageSize, (pages.end - start) / kPageSize);
      if (!block->empty()) continue;
      block.reset();
      --region.used;
    }
  }

  std::map<uint64_t, std::unique_ptr<Region>> regions_;  // by GiB
  Region* last_ = nullptr;                               // of the last at()
  uint64_t last_number_ = 0;
};

}  // namespace replpage
