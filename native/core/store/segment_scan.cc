#include "core/store/segment_scan.h"

#include <sys/stat.h>

#include <algorithm>
#include <cstring>

#include "core/store/record_codec.h"
#include "core/store/segment_file.h"
#include "core/store/store_files.h"

namespace replpage {
namespace {

constexpr size_t kWindowBytes = 1 << 20;

// A part of a file in memory that moves on.
class FileWindow {
 public:
  FileWindow(int fd, const std::string& path) : fd_(fd), path_(path), bytes_(kWindowBytes) {}

  // What the file has from `offset` on: at least `wanted` bytes, unless it ends before.
  std::span<const uint8_t> at(uint64_t offset, size_t wanted) {
    const bool inside = offset >= start_ && offset - start_ + wanted <= size_;
    if (!inside && !(offset >= start_ && at_end_)) {
      start_ = offset;
      size_ = read_at(fd_, path_, bytes_.data(), bytes_.size(), offset);
      at_end_ = size_ < bytes_.size();
    }
    const size_t skipped = std::min<uint64_t>(offset - start_, size_);
    return {bytes_.data() + skipped, size_ - skipped};
  }

 private:
  int fd_;
  const std::string& path_;
  std::vector<uint8_t> bytes_;
  uint64_t start_ = 0;
  size_t size_ = 0;
  bool at_end_ = false;
};

// Whether a record's header of this very place stands there.
bool begins_here(std::span<const uint8_t> bytes, const SegmentHeader& segment, uint64_t offset) {
  RecordHeader header;
  if (bytes.size() < sizeof header) return false;
  std::memcpy(&header, bytes.data(), sizeof header);
  return !fault_of(header) && header.segment == segment.number &&
         header.generation == segment.generation && header.position == offset / kRecordAlignment;
}

}  // namespace

SegmentScan scan_segment(int generation, const std::string& path, const GenerationName& of,
                         uint32_t number, const StoreKey* key,
                         const std::function<void(const ScannedRecord&)>& visit) {
  SegmentFileToRead file = open_segment(generation, path, of, number, key);
  FileWindow window(file.fd.get(), file.path);
  RecordDecoder decoder;
  RecordHeader header;
  std::vector<uint8_t> content;
  SegmentScan scan;
  std::optional<ScanDamage> damage;  // between the last sound record and here
  uint64_t offset = kFirstRecord;
  scan.tail_offset = offset;
  for (;;) {
    const std::span<const uint8_t> bytes = window.at(offset, kRecordBytesMax);
    if (bytes.empty()) break;
    const bool begins = begins_here(bytes, file.header, offset);
    std::string fault = "no record begins here";
    if (begins) fault = decoder.decode(bytes, file.cipher, header, content);
    if (!fault.empty()) {
      if (!damage) damage = ScanDamage{.offset = offset, .cause = fault};
      offset += kRecordAlignment;
      continue;
    }
    if (damage && scan.damages.size() < kScanDamagesMax) scan.damages.push_back(*damage);
    damage.reset();
    visit({.location = location_of(header),
           .pid = header.pid,
           .address = header.address,
           .epoch = header.epoch,
           .content = content});
    ++scan.records;
    scan.pages += header.pages;
    scan.stored_bytes += record_bytes(header);
    offset += record_ceil(record_bytes(header));
    scan.tail_offset = offset;
  }
  scan.torn_tail = damage.has_value();
  return scan;
}

}  // namespace replpage
