#include "core/uffd/lazy_ranges.h"

#include <utility>
#include <vector>

namespace replpage {

void LazyRanges::split(uint64_t address) {
  auto after = pieces_.upper_bound(address);
  if (after == pieces_.begin()) return;
  auto piece = std::prev(after);
  if (piece->first == address || piece->second.end <= address) return;
  const Rest tail{.end = piece->second.end,
                  .from = piece->second.from.after(address - piece->first)};
  piece->second.end = address;
  pieces_.emplace_hint(after, address, tail);
}

void LazyRanges::add(PageRange range, ContentPlace from) {
  if (range.start >= range.end) return;
  erase(range);
  pieces_.emplace(range.start, Rest{.end = range.end, .from = from});
  bytes_ += range.bytes();
}

void LazyRanges::erase(PageRange range) {
  if (range.start >= range.end) return;
  split(range.start);
  split(range.end);
  auto piece = pieces_.lower_bound(range.start);
  while (piece != pieces_.end() && piece->first < range.end) {
    bytes_ -= piece->second.end - piece->first;
    piece = pieces_.erase(piece);
  }
}

void LazyRanges::move(uint64_t from, uint64_t to, uint64_t bytes) {
  split(from);
  split(from + bytes);
  std::vector<LazyPiece> moved;
  for (auto piece = pieces_.lower_bound(from);
       piece != pieces_.end() && piece->first < from + bytes; ++piece) {
    moved.push_back(piece_of(*piece));
  }
  erase({from, from + bytes});
  erase({to, to + bytes});
  for (const LazyPiece& piece : moved) {
    add({piece.start - from + to, piece.end - from + to}, piece.from);
  }
}

std::optional<LazyPiece> LazyRanges::at(uint64_t address) const {
  const std::optional<LazyPiece> piece = first_from(address);
  if (!piece || piece->start != address) return std::nullopt;
  return piece;
}

std::optional<LazyPiece> LazyRanges::around(uint64_t address) const {
  const auto after = pieces_.upper_bound(address);
  if (after == pieces_.begin()) return std::nullopt;
  const auto piece = std::prev(after);
  if (piece->second.end <= address) return std::nullopt;
  return piece_of(*piece);
}

std::optional<LazyPiece> LazyRanges::first_from(uint64_t address) const {
  if (std::optional<LazyPiece> piece = around(address)) {
    piece->from = piece->from.after(address - piece->start);
    piece->start = address;
    return piece;
  }
  const auto next = pieces_.upper_bound(address);
  if (next == pieces_.end()) return std::nullopt;
  return piece_of(*next);
}

}  // namespace replpage
