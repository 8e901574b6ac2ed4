// The tracer's end of the staging area: a memfd, then a bounded spill file, in one offset space.
//
// An epoch appends to it (pages, run lists, encoded images), the keeper reads it through its own
// mapping, and reset() gives the room back once the keeper holds the epoch. A part of the memory is
// kept for what is copied while the primary stands still, which must not wait for a disk. Both
// files have no name, so nothing is left behind by a killed daemon.
#pragma once

#include <sys/mman.h>

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "core/base/unique_fd.h"
#include "core/channel/messages.h"
#include "core/memory/page_run.h"
#include "core/staging/warm_part.h"

namespace replpage {

inline constexpr uint64_t kStagingBytesMax = 256ull << 20;
// Largest single reservation; process_vm_readv gains nothing from more.
inline constexpr uint64_t kStagingChunkBytes = 2ull << 20;
inline constexpr uint64_t kSpillPieceBytes = 128ull << 10;

struct StagingOptions {
  uint64_t memory_bytes = kStagingBytesMax;  // at most kStagingBytesMax, at least 4 chunks
  uint64_t spill_bytes_max = 0;              // 0: no spill file
  std::string spill_directory;               // on a file system of its own choosing; not tmpfs
  // Throws when what is being staged is not wanted any more: asked between pieces of at most
  // kSpillPieceBytes that are written to the disk, which may be slow. Null: it always is.
  std::function<void()> check_wanted = {};
};

class StagingArea : public PageSink {
 public:
  // Throws SysError (memfd_create, ftruncate, mmap; EINVAL: sizes). Where no spill file can be made
  // there is none: see spill_problem().
  explicit StagingArea(const StagingOptions& options);
  ~StagingArea() override;
  StagingArea(const StagingArea&) = delete;
  StagingArea& operator=(const StagingArea&) = delete;

  std::span<uint8_t> reserve(uint64_t bytes) override;
  // The same, from all of the memory and no disk; empty when that is full.
  std::span<uint8_t> reserve_in_memory(uint64_t bytes);
  [[nodiscard]] uint64_t chunk_bytes_max() const override { return kStagingChunkBytes; }
  uint64_t keep(uint64_t used) override;
  // Joins a run with the one before it where address and data go on.
  void add(const PageRun& run) override;

  // Stages an encoded structure of any size. Throws SysError(ENOSPC).
  StagedBytes put_encoded(std::span<const uint8_t> bytes);
  template <class T>
  StagedBytes put(T& structure) {
    return put_encoded(encode(structure));
  }
  [[nodiscard]] size_t runs_waiting() const { return runs_.size(); }

  // From now on, until reset(), the kept part of the memory is used before the disk is, and
  // check_wanted is asked no more: nobody may wait for a disk as long as there is memory.
  void hurry() { hurried_ = true; }

  // Forgets everything staged. Memory, and the disk's, that recent epochs did not need goes back to
  // the system at once, the rest over some dozen idle epochs: the next epoch finds warm pages, idle
  // costs nothing.
  void reset();
  // The same, without a part that is kept warm: there will be no next epoch.
  void release();

  // Whether one run can hold both: the next goes on where the last ends, in memory and here. None
  // crosses the border to the spill file: the reader maps the two parts separately.
  [[nodiscard]] bool joins(const PageRun& last, const PageRun& next) const;

  [[nodiscard]] uint64_t used_bytes() const { return memory_used_ + spill_used_; }
  [[nodiscard]] uint64_t spilled_bytes() const { return spill_used_; }
  [[nodiscard]] uint64_t memory_bytes() const { return memory_bytes_; }
  // Of the memory, what takes RAM at present, on both sides together. Any thread.
  [[nodiscard]] uint64_t populated_bytes() const;
  // All of the memory, whatever lies in it.
  [[nodiscard]] std::span<uint8_t> memory() const { return {memory_, memory_bytes_}; }
  [[nodiscard]] uint64_t spill_bytes_max() const { return spill_bytes_max_; }
  [[nodiscard]] int memory_fd() const { return memory_fd_.get(); }
  [[nodiscard]] int spill_fd() const { return spill_fd_.get(); }  // -1: none
  // Why there is no spill file although one was asked for; else empty.
  [[nodiscard]] const std::string& spill_problem() const { return spill_problem_; }

 private:
  friend class PageStream;
  [[nodiscard]] uint64_t place(uint64_t bytes) const;
  void take(uint64_t offset, uint64_t bytes);
  void write_spill(uint64_t offset, std::span<const uint8_t> bytes);
  void punch_memory(uint64_t start, uint64_t end);
  void shorten_spill(uint64_t bytes);

  uint64_t memory_bytes_ = 0, spill_bytes_max_ = 0;
  UniqueFd memory_fd_, spill_fd_;
  std::string spill_problem_;
  std::function<void()> check_wanted_;
  bool hurried_ = false;
  uint8_t* memory_ = nullptr;
  std::vector<uint8_t> spill_buffer_;
  std::vector<PageRun> runs_;
  uint64_t memory_used_ = 0, spill_used_ = 0;
  uint64_t reserved_at_ = 0;  // of the last reservation
  uint64_t reserved_bytes_ = 0;
  WarmPart warm_memory_, warm_spill_;  // kept populated across resets
};

}  // namespace replpage
