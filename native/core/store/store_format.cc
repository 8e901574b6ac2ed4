#include "core/store/store_format.h"

#include <algorithm>

namespace replpage {
namespace {

bool all_zero(std::span<const uint8_t> bytes) {
  return std::all_of(bytes.begin(), bytes.end(), [](uint8_t byte) { return byte == 0; });
}

}  // namespace

std::optional<std::string> fault_of(const SegmentHeader& header) {
  if (header.magic != kSegmentMagic) return "this is no segment";
  if (!header_intact(header)) return "the segment's header is damaged";
  if (header.version != kStoreVersion) {
    return "the segment has version " + std::to_string(header.version) + ", known is " +
           std::to_string(kStoreVersion);
  }
  if ((header.flags & ~kSegmentEncrypted) != 0) return "the segment has unknown flags";
  if (header.reserved != 0 || !all_zero(header.padding)) {
    return "the segment's header has a reserved field that is not zero";
  }
  return std::nullopt;
}

std::optional<std::string> fault_of(const RecordHeader& header) {
  if (header.magic != kRecordMagic) return "no record begins here";
  if (!header_intact(header)) return "the record's header is damaged";
  if (header.reserved != 0) return "the record has a reserved field that is not zero";
  if (header.pages == 0 || header.pages > kRecordPagesLimit) {
    return "the record has " + std::to_string(header.pages) + " pages";
  }
  const uint64_t plain = header.pages * kPageSize;
  const bool right = header.encoding == RecordEncoding::kRaw
                         ? header.stored_bytes == plain
                         : header.encoding == RecordEncoding::kLz4 && header.stored_bytes != 0 &&
                               header.stored_bytes < plain;
  if (!right) return "the record has an encoding or a length that cannot be";
  return std::nullopt;
}

}  // namespace replpage
