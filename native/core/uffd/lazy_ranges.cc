#include "core/uffd/lazy_ranges.h"

#include <algorithm>

namespace replpage {
namespace {

// The first that ends behind the page.
template <class Entries>
auto first_behind(Entries& entries, uint64_t page) {
  return std::partition_point(entries.begin(), entries.end(),
                              [page](const auto& entry) { return entry.end <= page; });
}

}  // namespace

LazyPiece LazyRanges::piece_of(uint64_t block, const Entry& entry) {
  return {block + entry.start * kPageSize,
          block + entry.end * kPageSize,
          {entry.source, entry.position}};
}

void LazyRanges::add(PageRange range, ContentPlace from) {
  erase(range);
  for (uint64_t start = range.start; start < range.end;) {
    const uint64_t block = start / kBlockBytes * kBlockBytes;
    const uint64_t end = std::min(range.end, block + kBlockBytes);
    const uint64_t first = (start - block) / kPageSize, last = (end - block) / kPageSize;
    Entries& entries = blocks_[block];
    entries.insert(first_behind(entries, first), {.start = static_cast<uint16_t>(first),
                                                  .end = static_cast<uint16_t>(last),
                                                  .source = from.source,
                                                  .position = from.position});
    pages_ += last - first;
    from = from.after(end - start);
    start = end;
  }
}

void LazyRanges::erase(PageRange range) {
  if (range.start >= range.end) return;
  auto block = blocks_.lower_bound(range.start / kBlockBytes * kBlockBytes);
  while (block != blocks_.end() && block->first < range.end) {
    const uint64_t first = std::max(range.start, block->first) - block->first;
    const uint64_t last = std::min(range.end - block->first, kBlockBytes);
    erase_in(block->second, static_cast<uint16_t>(first / kPageSize),
             static_cast<uint16_t>(last / kPageSize));
    block = block->second.empty() ? blocks_.erase(block) : std::next(block);
  }
}

void LazyRanges::erase_in(Entries& entries, uint16_t first, uint16_t last) {
  auto entry = first_behind(entries, first);
  if (entry == entries.end() || entry->start >= last) return;
  if (entry->start < first) {
    Entry tail = *entry;
    entry->end = first;
    ++entry;
    pages_ -= std::min(tail.end, last) - first;
    if (tail.end > last) {
      tail.position += (last - tail.start) * kPageSize;
      tail.start = last;
      entries.insert(entry, tail);
      return;
    }
  }
  auto rest = entry;
  for (; rest != entries.end() && rest->end <= last; ++rest) pages_ -= rest->end - rest->start;
  if (rest != entries.end() && rest->start < last) {
    pages_ -= last - rest->start;
    rest->position += (last - rest->start) * kPageSize;
    rest->start = last;
  }
  entries.erase(entry, rest);
}

void LazyRanges::move(uint64_t from, uint64_t to, uint64_t bytes) {
  std::vector<LazyPiece> moved;
  for (auto piece = first_from(from); piece && piece->start < from + bytes;
       piece = first_from(piece->end)) {
    piece->end = std::min(piece->end, from + bytes);
    moved.push_back(*piece);
  }
  erase({from, from + bytes});
  erase({to, to + bytes});
  for (const LazyPiece& piece : moved) {
    add({piece.start - from + to, piece.end - from + to}, piece.from);
  }
}

std::optional<LazyRanges::Found> LazyRanges::find(uint64_t address) const {
  const uint64_t start = address / kBlockBytes * kBlockBytes;
  auto block = blocks_.lower_bound(start);
  if (block == blocks_.end()) return std::nullopt;
  if (block->first > start) return Found{block, block->second.begin()};
  const auto entry = first_behind(block->second, (address - start) / kPageSize);
  if (entry != block->second.end()) return Found{block, entry};
  if (++block == blocks_.end()) return std::nullopt;
  return Found{block, block->second.begin()};
}

std::optional<LazyPiece> LazyRanges::at(uint64_t address) const {
  const std::optional<LazyPiece> piece = first_from(address);
  if (!piece || piece->start != address) return std::nullopt;
  return piece;
}

std::optional<LazyPiece> LazyRanges::around(uint64_t address) const {
  const auto found = find(address);
  if (!found) return std::nullopt;
  const LazyPiece piece = piece_of(found->block->first, *found->entry);
  if (piece.start > address) return std::nullopt;
  return piece;
}

std::optional<LazyPiece> LazyRanges::first_from(uint64_t address) const {
  const auto found = find(address);
  if (!found) return std::nullopt;
  LazyPiece piece = piece_of(found->block->first, *found->entry);
  if (piece.start < address) {
    piece.from = piece.from.after(address - piece.start);
    piece.start = address;
  }
  return piece;
}

void LazyRanges::list_from(uint64_t address, size_t max, std::vector<LazyPiece>& into) const {
  const auto found = find(address);
  if (!found) return;
  auto [block, entry] = *found;
  for (; max != 0; --max) {
    into.push_back(piece_of(block->first, *entry));
    if (++entry != block->second.end()) continue;
    if (++block == blocks_.end()) return;
    entry = block->second.begin();
  }
}

uint64_t LazyRanges::memory_bytes() const {
  constexpr uint64_t kNodeBytes = 5 * sizeof(void*) + sizeof(Blocks::value_type);
  uint64_t bytes = 0;
  for (const auto& [start, entries] : blocks_) {
    bytes += kNodeBytes + entries.capacity() * sizeof(Entry);
  }
  return bytes;
}

}  // namespace replpage
