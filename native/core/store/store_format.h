// The bytes of a segment, as docs/formats/page-store.md describes them. Little-endian.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string>

#include "core/base/crc32c.h"
#include "core/store/store_location.h"

namespace replpage {

inline constexpr uint64_t kSegmentMagic = 0x31474553'4C504552;  // "REPLSEG1"
inline constexpr uint32_t kRecordMagic = 0x43525052;            // "RPRC"
inline constexpr uint32_t kStoreVersion = 1;

inline constexpr uint32_t kSegmentEncrypted = 1;  // flag: authentication is an AES-256-GCM tag

enum class RecordEncoding : uint8_t { kRaw = 0, kLz4 = 1 };

struct SegmentHeader {
  uint64_t magic = kSegmentMagic;
  uint32_t version = kStoreVersion;
  uint32_t flags = 0;
  uint64_t group_id = 0;
  uint64_t generation = 0;
  uint32_t number = 0;
  uint32_t reserved = 0;
  std::array<uint8_t, 32> salt{};       // random; the segment's key is derived from it
  std::array<uint8_t, 16> key_check{};  // tells a wrong key from damage; zero without encryption
  std::array<uint8_t, 36> padding{};    // zero
  uint32_t crc = 0;                     // CRC32C of the bytes before it
};
static_assert(sizeof(SegmentHeader) == 128 && offsetof(SegmentHeader, crc) == 124);

struct RecordHeader {
  uint32_t magic = kRecordMagic;
  RecordEncoding encoding = RecordEncoding::kRaw;
  uint8_t pages = 0;
  uint16_t reserved = 0;
  uint32_t stored_bytes = 0;  // of the payload
  int32_t pid = 0;
  uint64_t address = 0;
  uint64_t epoch = 0;
  uint64_t generation = 0;
  uint32_t segment = 0;
  uint32_t position = 0;  // offset in the segment / kRecordAlignment
  uint32_t attempt = 0;   // how often the segment's end had been cut off: no nonce is used twice
  uint32_t crc = 0;       // CRC32C of the bytes before it
};
static_assert(sizeof(RecordHeader) == 56 && offsetof(RecordHeader, crc) == 52);

// After the payload: the tag, or a CRC32C of segment header, record header and payload, then zeros.
using RecordSeal = std::array<uint8_t, 16>;

inline constexpr size_t kRecordOverhead = sizeof(RecordHeader) + sizeof(RecordSeal);
inline constexpr size_t kRecordBytesMax = kRecordOverhead + kRecordPagesLimit * kPageSize;
static_assert((kRecordBytesMax + 1023) / 1024 <= 0x3F);
static_assert(kRecordPagesMax <= kRecordPagesLimit);

template <class T>
std::span<const uint8_t> bytes_of(const T& plain) {
  return {reinterpret_cast<const uint8_t*>(&plain), sizeof plain};
}

template <class Header>
void seal_header(Header& header) {
  header.crc = crc32c(bytes_of(header).first(offsetof(Header, crc)));
}

template <class Header>
bool header_intact(const Header& header) {
  return header.crc == crc32c(bytes_of(header).first(offsetof(Header, crc)));
}

constexpr uint64_t record_ceil(uint64_t bytes) {
  return (bytes + kRecordAlignment - 1) & ~static_cast<uint64_t>(kRecordAlignment - 1);
}
inline constexpr uint64_t kFirstRecord = record_ceil(sizeof(SegmentHeader));

// Of the record on disk, without what aligns the next one.
inline uint64_t record_bytes(const RecordHeader& header) {
  return kRecordOverhead + header.stored_bytes;
}

constexpr uint32_t kib_ceil(uint64_t bytes) { return static_cast<uint32_t>((bytes + 1023) / 1024); }

inline StoreLocation location_of(const RecordHeader& header) {
  return {.segment = header.segment,
          .record_offset = header.position * kRecordAlignment,
          .record_kib = kib_ceil(record_bytes(header)),
          .content_offset = 0};
}

// Why a header cannot be right; nothing when it can. Its checksum is looked at first.
std::optional<std::string> fault_of(const SegmentHeader& header);
std::optional<std::string> fault_of(const RecordHeader& header);

}  // namespace replpage
