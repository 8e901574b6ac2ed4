#include "core/store/checkpoint_manifest.h"

#include <algorithm>
#include <cstring>

#include "core/store/record_codec.h"
#include "core/store/store_error.h"
#include "core/store/store_format.h"

namespace replpage {
namespace {

constexpr uint64_t kManifestMagic = 0x31504B43'4C504552;  // "REPLCKP1"

bool all_zero(std::span<const uint8_t> bytes) {
  return std::all_of(bytes.begin(), bytes.end(), [](uint8_t byte) { return byte == 0; });
}

void check_header(const SegmentHeader& header, const std::string& path) {
  if (header.magic != kManifestMagic) throw StoreDamaged(path, 0, "this is no checkpoint");
  if (!header_intact(header)) throw StoreDamaged(path, 0, "the header is damaged");
  if (header.version > kCheckpointVersion) {
    throw StoreError(StoreFailure::kUnusable, "page store: " + path + " has version " +
                                                  std::to_string(header.version) + ", known is " +
                                                  std::to_string(kCheckpointVersion));
  }
  const bool plain = header.number == 0 && header.reserved == 0 && all_zero(header.padding);
  if (header.version == 0 || (header.flags & ~kSegmentEncrypted) != 0 || !plain) {
    throw StoreDamaged(path, 0, "the header has a field that cannot be");
  }
}

CheckpointManifest decode_content(std::span<const uint8_t> content, const std::string& path) {
  uint32_t length = 0;
  std::memcpy(&length, content.data(), sizeof length);
  const std::span<const uint8_t> rest = content.subspan(sizeof length);
  if (length > rest.size() || !all_zero(rest.subspan(length))) {
    throw StoreDamaged(path, sizeof(SegmentHeader), "the manifest has an impossible length");
  }
  try {
    return decode<CheckpointManifest>(rest.first(length));
  } catch (const FormatError& error) {
    throw StoreDamaged(path, sizeof(SegmentHeader), error.what());
  }
}

}  // namespace

std::vector<uint8_t> seal_manifest(CheckpointManifest& manifest, const StoreKey* key) {
  const Bytes plain = encode(manifest);
  if (plain.size() > kManifestBytesMax) {
    throw StoreError(StoreFailure::kUnusable,
                     "page store: the state of the group is too large for a checkpoint");
  }
  const auto length = static_cast<uint32_t>(plain.size());
  std::vector<uint8_t> content(page_ceil(sizeof length + plain.size()));
  std::memcpy(content.data(), &length, sizeof length);
  std::copy(plain.begin(), plain.end(), content.begin() + sizeof length);
  SegmentHeader header{.magic = kManifestMagic,
                       .version = kCheckpointVersion,
                       .group_id = manifest.group_id,
                       .generation = manifest.generation};
  salt_segment(header, key);
  seal_header(header);
  std::vector<uint8_t> bytes(kFirstRecord);
  std::memcpy(bytes.data(), &header, sizeof header);
  SegmentCipher cipher(header, key, "the checkpoint");
  RecordHeader record{.epoch = manifest.epoch,
                      .generation = manifest.generation,
                      .position = static_cast<uint32_t>(kFirstRecord / kRecordAlignment)};
  RecordEncoder().encode(record, content, true, cipher, bytes);
  return bytes;
}

CheckpointManifest open_manifest(std::span<const uint8_t> bytes, const StoreKey* key,
                                 const std::string& path) {
  SegmentHeader header;
  if (bytes.size() < kFirstRecord) throw StoreDamaged(path, 0, "it ends within its header");
  std::memcpy(&header, bytes.data(), sizeof header);
  check_header(header, path);
  SegmentCipher cipher(header, key, path);
  RecordHeader record;
  std::vector<uint8_t> content;
  const std::string fault =
      RecordDecoder().decode(bytes.subspan(kFirstRecord), cipher, record, content);
  if (!fault.empty()) throw StoreDamaged(path, kFirstRecord, fault);
  if (bytes.size() != kFirstRecord + record_ceil(record_bytes(record)) ||
      !all_zero(bytes.subspan(kFirstRecord + record_bytes(record)))) {
    throw StoreDamaged(path, kFirstRecord, "it is longer or shorter than its record");
  }
  CheckpointManifest manifest = decode_content(content, path);
  const uint64_t chunks = (manifest.state_bytes + kStateChunkBytes - 1) / kStateChunkBytes;
  if (manifest.group_id != header.group_id || manifest.generation != header.generation ||
      manifest.epoch != record.epoch || chunks != manifest.state.size()) {
    throw StoreDamaged(path, kFirstRecord, "the manifest contradicts itself");
  }
  return manifest;
}

}  // namespace replpage
