// Where a cold page lies in the page store: one 64-bit number. Adding k pages in bytes to it names
// the page k pages further in the same record. docs/formats/page-store.md has the layout.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>

#include "core/base/page.h"

namespace replpage {

// Most pages of one record. Reading one page decodes its whole record, so that this bounds the
// cost of a fault. The format carries up to 15.
inline constexpr uint32_t kRecordPagesMax = 8;
inline constexpr uint32_t kRecordPagesLimit = 15;

inline constexpr uint32_t kRecordAlignment = 64;
// Offsets of records are below it; longer segments cannot be named.
inline constexpr uint32_t kSegmentBytesLimit = 64u << 20;
inline constexpr uint32_t kSegmentNumberMax = (1u << 21) - 1;

// Bits 0-15: content_offset; 16-21: record_kib; 22-41: record_offset / 64; 42-62: segment; 63:
// zero.
struct StoreLocation {
  uint32_t segment = 0;         // number, from 1
  uint32_t record_offset = 0;   // bytes from the segment's start, a multiple of kRecordAlignment
  uint32_t record_kib = 0;      // whole record on disk, rounded up: what one read must fetch
  uint32_t content_offset = 0;  // bytes in the record's plain content

  [[nodiscard]] constexpr uint64_t pack() const {
    return static_cast<uint64_t>(content_offset) | static_cast<uint64_t>(record_kib) << 16 |
           static_cast<uint64_t>(record_offset / kRecordAlignment) << 22 |
           static_cast<uint64_t>(segment) << 42;
  }

  // nullopt: no writer ever gave this number.
  static constexpr std::optional<StoreLocation> unpack(uint64_t value) {
    const StoreLocation location{
        .segment = static_cast<uint32_t>(value >> 42 & kSegmentNumberMax),
        .record_offset = static_cast<uint32_t>(value >> 22 & 0xFFFFF) * kRecordAlignment,
        .record_kib = static_cast<uint32_t>(value >> 16 & 0x3F),
        .content_offset = static_cast<uint32_t>(value & 0xFFFF)};
    const bool possible = value >> 63 == 0 && location.segment != 0 &&
                          location.record_offset != 0 && location.record_kib != 0 &&
                          location.content_offset % kPageSize == 0 &&
                          location.content_offset < kRecordPagesLimit * kPageSize;
    if (!possible) return std::nullopt;
    return location;
  }

  bool operator==(const StoreLocation&) const = default;
};

// The segment number of a packed location.
constexpr uint32_t segment_of(uint64_t location) {
  return static_cast<uint32_t>(location >> 42 & kSegmentNumberMax);
}

// The packed location of the page `pages` further in the same record.
constexpr uint64_t pages_further(uint64_t location, uint64_t pages) {
  return location + pages * kPageSize;
}

}  // namespace replpage
