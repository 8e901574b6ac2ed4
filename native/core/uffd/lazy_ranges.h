// Which pages of an address space still lie in another process only, and where there. Pure.
#pragma once

#include <cstdint>
#include <map>
#include <optional>

#include "core/base/page.h"

namespace replpage {

// Pages [start, end) whose content is at `source` upwards in the source process.
struct LazyPiece {
  uint64_t start = 0, end = 0, source = 0;
  [[nodiscard]] uint64_t bytes() const { return end - start; }
  bool operator==(const LazyPiece&) const = default;
};

class LazyRanges {
 public:
  // Replaces what was known of the range. All addresses are page aligned.
  void add(PageRange range, uint64_t source);
  // Nothing of the range comes from the source any more: filled, discarded or unmapped.
  void erase(PageRange range);
  // mremap(2): what was at `from` is at `to`; what was at `to` is gone.
  void move(uint64_t from, uint64_t to, uint64_t bytes);

  // The rest, from `address` on, of the piece that contains it.
  [[nodiscard]] std::optional<LazyPiece> at(uint64_t address) const;
  // The first piece, cut to start at `address`, that ends after it.
  [[nodiscard]] std::optional<LazyPiece> first_from(uint64_t address) const;

  [[nodiscard]] bool empty() const { return pieces_.empty(); }
  [[nodiscard]] uint64_t pages() const { return bytes_ / kPageSize; }

 private:
  struct Rest {
    uint64_t end = 0, source = 0;
  };
  using Pieces = std::map<uint64_t, Rest>;
  // Makes `address` a border between pieces.
  void split(uint64_t address);

  Pieces pieces_;  // by start, disjoint
  uint64_t bytes_ = 0;
};

}  // namespace replpage
