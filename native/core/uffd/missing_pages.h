// All that an address space misses: pages that are in a process that goes away, and is waiting to;
// and pages in the page store, which has time. Pure.
#pragma once

#include <algorithm>

#include "core/uffd/lazy_ranges.h"

namespace replpage {

class MissingPages {
 public:
  MissingPages() = default;
  // What is in both is read from the process: it is newer.
  MissingPages(LazyRanges passing, LazyRanges stored)
      : passing_(std::move(passing)), stored_(std::move(stored)) {
    for (auto piece = passing_.first_from(0); piece; piece = passing_.first_from(piece->end)) {
      stored_.erase({piece->start, piece->end});
    }
  }

  // As in LazyRanges.
  void erase(PageRange range) {
    passing_.erase(range);
    stored_.erase(range);
  }
  void move(uint64_t from, uint64_t to, uint64_t bytes) {
    passing_.move(from, to, bytes);
    stored_.move(from, to, bytes);
  }
  [[nodiscard]] std::optional<LazyPiece> at(uint64_t address) const {
    const auto piece = passing_.at(address);
    return piece ? piece : stored_.at(address);
  }
  [[nodiscard]] std::optional<LazyPiece> around(uint64_t address) const {
    const auto piece = passing_.around(address);
    return piece ? piece : stored_.around(address);
  }
  [[nodiscard]] std::optional<LazyPiece> first_from(uint64_t address) const {
    const auto passing = passing_.first_from(address);
    const auto stored = stored_.first_from(address);
    if (!passing || !stored) return passing ? passing : stored;
    return passing->start < stored->start ? passing : stored;
  }

  [[nodiscard]] const LazyRanges& passing() const { return passing_; }
  [[nodiscard]] const LazyRanges& stored() const { return stored_; }
  [[nodiscard]] bool empty() const { return passing_.empty() && stored_.empty(); }
  [[nodiscard]] uint64_t pages() const { return passing_.pages() + stored_.pages(); }

 private:
  LazyRanges passing_, stored_;
};

}  // namespace replpage
