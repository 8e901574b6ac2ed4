// Reads pages back from the segments of one generation.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "core/store/store_directory.h"
#include "core/store/store_key.h"
#include "core/store/store_location.h"

namespace replpage {

struct ReaderOptions {
  std::string path;  // of the store, for messages only
  GenerationName of;
  const StoreKey* key = nullptr;  // borrowed until the constructor returns; null: not encrypted
  uint32_t segments_open_max = 64;
  uint32_t records_kept = 16;  // decoded, up to 32 KiB each
};

// A decoded record. Valid until the reader is used again.
struct RecordView {
  int32_t pid = 0;
  uint64_t address = 0;  // of the first byte of `content`
  uint64_t epoch = 0;
  std::span<const uint8_t> content;  // whole pages that follow each other from `address` on
};

// Whole pages of one record, and where they go.
struct PagesAt {
  uint64_t location = 0;
  std::span<uint8_t> into;
};

// Not for several threads at once: each has one of its own.
//
// Gives only content that was written for that very process and address by that very generation and
// whose checksum or authentication fits. Everything else is a StoreDamaged; a segment that is not
// there StoreError(kGone), one of another key kWrongKey, a read that fails kIo (it may be tried
// again). Nothing of a failure is remembered.
class SegmentReader {
 public:
  // `generation` comes from open_generation(), where the store is mounted: its descriptor may be
  // sent to a process that does not see the mount. Waits for nothing.
  SegmentReader(UniqueFd generation, const ReaderOptions& options);
  ~SegmentReader();
  SegmentReader(const SegmentReader&) = delete;
  SegmentReader& operator=(const SegmentReader&) = delete;

  // Fills `into`: whole pages of one record. May wait for a hung mount for ever.
  void read(uint64_t location, int32_t pid, uint64_t address, std::span<uint8_t> into);
  // False: it would have to wait for the disk (or cannot tell: then read() is what there is).
  [[nodiscard]] bool try_read(uint64_t location, int32_t pid, uint64_t address,
                              std::span<uint8_t> into);

  // The same of whatever process and address, for memory that has been moved or forked since. The
  // location itself is bound to the content: no file and no place in one is used twice.
  void read(uint64_t location, std::span<uint8_t> into);
  [[nodiscard]] bool try_read(uint64_t location, std::span<uint8_t> into);

  // Records of one segment with one read, ascending: what lies between the first and the last of
  // them is read, too. False: one of them is not what it should be, or cannot be read; nothing of
  // any may be used then, and read() tells why.
  [[nodiscard]] bool read_run(std::span<const PagesAt> wanted);

  // The file from the record on, `bytes` of it, is going to be read. A hint; may wait for the disk.
  void expect(uint64_t location, uint64_t bytes);

  // The whole record around a location, for reading around a fault.
  RecordView record(uint64_t location, int32_t pid, uint64_t address);
  // nullopt: it would have to wait for the disk.
  std::optional<RecordView> try_record(uint64_t location, int32_t pid, uint64_t address);

 private:
  class State;
  std::unique_ptr<State> state_;
};

}  // namespace replpage
