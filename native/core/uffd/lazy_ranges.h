// Which pages of an address space are still elsewhere, and where. Pure.
#pragma once

#include <cstdint>
#include <map>
#include <optional>

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

  [[nodiscard]] bool empty() const { return pieces_.empty(); }
  [[nodiscard]] uint64_t pages() const { return bytes_ / kPageSize; }

 private:
  struct Rest {
    uint64_t end = 0;
    ContentPlace from;
  };
  using Pieces = std::map<uint64_t, Rest>;
  static LazyPiece piece_of(const Pieces::value_type& entry) {
    return {entry.first, entry.second.end, entry.second.from};
  }
  // Makes `address` a border between pieces.
  void split(uint64_t address);

  Pieces pieces_;  // by start, disjoint
  uint64_t bytes_ = 0;
};

}  // namespace replpage
