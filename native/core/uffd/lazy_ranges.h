// Which pages of an address space are still elsewhere, and where. Pure.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <vector>

#include "core/base/page.h"

namespace replpage {

// One of a list of sources, and a position in it: an address of another process, or a location in
// the page store. What lies n bytes further lies at the position n further.
struct ContentPlace {
  uint32_t source = 0;
  uint64_t position = 0;
  [[nodiscard]] ContentPlace after(uint64_t bytes) const { return {source, position + bytes}; }
  bool operator==(const ContentPlace&) const = default;
};

// Pages [start, end) whose content is at `from` upwards.
struct LazyPiece {
  uint64_t start = 0, end = 0;
  ContentPlace from;
  [[nodiscard]] uint64_t bytes() const { return end - start; }
  bool operator==(const LazyPiece&) const = default;
};

// A piece costs 16 bytes, since a standby keeps one for every cold page that has no cold neighbour.
// None is longer than a block: longer ranges are several.
class LazyRanges {
 public:
  // Replaces what was known of the range. All addresses are page aligned.
  void add(PageRange range, ContentPlace from);
  // Nothing of the range comes from elsewhere any more: filled, discarded or unmapped.
  void erase(PageRange range);
  // mremap(2): what was at `from` is at `to`; what was at `to` is gone.
  void move(uint64_t from, uint64_t to, uint64_t bytes);

  // The rest, from `address` on, of the piece that contains it.
  [[nodiscard]] std::optional<LazyPiece> at(uint64_t address) const;
  // The whole piece that contains it.
  [[nodiscard]] std::optional<LazyPiece> around(uint64_t address) const;
  // The first piece, cut to start at `address`, that ends after it.
  [[nodiscard]] std::optional<LazyPiece> first_from(uint64_t address) const;
  // That one and those after it, none cut, at most `max`.
  void list_from(uint64_t address, size_t max, std::vector<LazyPiece>& into) const;

  [[nodiscard]] bool empty() const { return blocks_.empty(); }
  [[nodiscard]] uint64_t pages() const { return pages_; }
  // Memory that they take.
  [[nodiscard]] uint64_t memory_bytes() const;

 private:
  static constexpr uint64_t kBlockBytes = 2u << 20;

  // In pages from the block's start.
  struct Entry {
    uint16_t start = 0, end = 0;
    uint32_t source = 0;
    uint64_t position = 0;
  };
  using Entries = std::vector<Entry>;          // ascending, disjoint
  using Blocks = std::map<uint64_t, Entries>;  // by start address; none is empty

  static LazyPiece piece_of(uint64_t block, const Entry& entry);
  // The first that ends behind the address: in the block that may have it, or in a later one.
  struct Found {
    Blocks::const_iterator block;
    Entries::const_iterator entry;
  };
  [[nodiscard]] std::optional<Found> find(uint64_t address) const;
  void erase_in(Entries& entries, uint16_t first, uint16_t last);

  Blocks blocks_;
  uint64_t pages_ = 0;
};

}  // namespace replpage
