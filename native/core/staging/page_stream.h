// The first copy of a group: a ring of chunks of the staging area. A filled chunk goes to the
// keeper (kPages), which applies it while the next one is being filled, and comes back with
// kPagesDone.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "core/staging/staging.h"

namespace replpage {

class PageStream : public PageSink {
 public:
  // Small enough for the whole ring to stay in the processor's cache, where the keeper finds a page
  // that was just read; enough chunks that neither side waits for the other's time slice.
  static constexpr uint64_t kChunkBytes = kStagingChunkBytes;
  static constexpr size_t kChunks = 8;
  static constexpr size_t kRunsPerChunk = 2048;

  // The way to the keeper. What these throw (KeeperLost) passes through.
  struct Keeper {
    std::function<void(StagedBytes runs)> send_pages;         // kPages
    std::function<void()> wait_pages_done;                    // returns after the next kPagesDone
    std::function<void(std::span<const PageRun>)> sent = {};  // what send_pages() named
  };

  // The staging area must be empty; it is reset by the destructor. Pages of a reservation must be
  // listed by add() before the next reserve().
  PageStream(StagingArea& staging, Keeper keeper);
  ~PageStream() override;
  PageStream(const PageStream&) = delete;
  PageStream& operator=(const PageStream&) = delete;

  std::span<uint8_t> reserve(uint64_t bytes) override;
  [[nodiscard]] uint64_t chunk_bytes_max() const override { return kStagingChunkBytes; }
  uint64_t keep(uint64_t used) override;
  void add(const PageRun& run) override;

  // Sends what is left and waits until the keeper has applied everything.
  void finish();

  [[nodiscard]] uint64_t bytes_sent() const { return bytes_sent_; }

 private:
  static constexpr uint64_t kRunBytesMax = 64;  // of one encoded run, amply
  static constexpr uint64_t kListBytes = kRunsPerChunk * kRunBytesMax;
  // The chunks' pages, then the chunks' lists of runs.
  static constexpr uint64_t kPagesBytes = kChunks * kChunkBytes;
  static constexpr uint64_t kRingBytes = kPagesBytes + kChunks * kListBytes;
  void flush();
  void wait_one();

  StagingArea& staging_;
  Keeper keeper_;
  std::vector<PageRun> runs_;
  size_t chunk_ = 0;      // being filled
  size_t in_flight_ = 0;  // with the keeper
  uint64_t filled_ = 0;   // bytes of pages in the current chunk
  uint64_t covered_ = 0;  // of these, bytes listed in runs_
  uint64_t bytes_sent_ = 0;
};

}  // namespace replpage
