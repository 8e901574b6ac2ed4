// Appends cold pages to the segments of one generation.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "core/store/store_directory.h"
#include "core/store/store_key.h"
#include "core/store/store_location.h"

namespace replpage {

struct WriterOptions {
  StoreOptions store;
  GenerationName of;
  uint64_t writer = 0;            // random; the same again when a writer that died is replaced
  bool again = false;             // goes on in a directory that this writer has made before
  uint32_t first_segment = 1;     // numbers below it are never used; those that are there neither
  const StoreKey* key = nullptr;  // borrowed until the constructor returns; null: not encrypted
  bool compress = true;
  // Of all generations of the group together, and what checkpoints of its name keep beside.
  uint64_t bytes_max = UINT64_MAX;
  uint32_t segment_bytes_max = kSegmentBytesLimit;
};

// Not for several threads at once. May wait for a hung mount for ever.
//
// After any StoreError nothing counts that was appended since the last sync() that returned: it is
// cut off again where that is possible, and the writer can be used further.
class SegmentWriter {
 public:
  // Throws StoreError.
  explicit SegmentWriter(const WriterOptions& options);
  ~SegmentWriter();
  SegmentWriter(const SegmentWriter&) = delete;
  SegmentWriter& operator=(const SegmentWriter&) = delete;

  // Appends one record: 1 to kRecordPagesMax whole pages that follow each other in the process from
  // `address` on. The location is worth nothing before sync() has returned. Throws StoreFull,
  // StoreError.
  StoreLocation append(int32_t pid, uint64_t address, uint64_t epoch,
                       std::span<const uint8_t> pages);

  // Returns when all that was appended would survive a loss of power. Throws StoreFull, StoreError.
  void sync();

  // Forgets what was appended since the last sync().
  void discard();

  // Unlinks a segment of this generation that nothing refers to any more.
  void drop_segment(uint32_t number);
  // Removes another generation of this group.
  void remove_generation(uint64_t generation);

  // Checkpoints were made or removed.
  void count_checkpoints();

  // The generation's directory, as long as this lives.
  [[nodiscard]] int directory() const;
  // Of the group's segments on disk, and those that checkpoints of its name alone keep, with what
  // is about to be written.
  [[nodiscard]] uint64_t bytes_on_disk() const;
  [[nodiscard]] uint64_t segments() const;
  // No segment with this number or a higher one was begun yet.
  [[nodiscard]] uint32_t next_segment() const;

 private:
  class State;
  std::unique_ptr<State> state_;
};

}  // namespace replpage
