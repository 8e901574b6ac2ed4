// A child process that does to its memory what a test tells it, and a model of its replica.
#pragma once

#include <sys/types.h>

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "core/memory/memory_capture.h"
#include "core/memory/memory_map.h"

namespace replpage::testing {

// The tracker that tests use: named by REPLPAGE_TEST_TRACKER, else what this kernel has. Skips the
// test where it has none.
TrackerKind usual_tracker();

class MemoryVictim {
 public:
  MemoryVictim();
  ~MemoryVictim();
  MemoryVictim(const MemoryVictim&) = delete;
  MemoryVictim& operator=(const MemoryVictim&) = delete;

  [[nodiscard]] pid_t pid() const { return pid_; }
  // Runs a function inside the child, which sleeps again when the call returns. Its result is
  // passed back. The function must have no captures.
  uint64_t run(uint64_t (*function)(uint64_t), uint64_t argument = 0);
  // Begins a function without waiting for its end; finish() waits.
  void start(uint64_t (*function)(uint64_t), uint64_t argument = 0);
  uint64_t finish();

  MemoryCapture::Injector injector();
  std::vector<MappingImage> map();
  // By SIGSTOP and SIGCONT: soft-dirty bits can be looked at only while no thread runs.
  void stop() const;
  void go_on() const;
  void kill();

 private:
  void wait_asleep() const;
  pid_t pid_ = -1;
  int commands_ = -1;
  int answers_ = -1;
};

// Keeps the victim stopped while a tracker looks that can do so at no other time.
class Pause {
 public:
  Pause(const MemoryVictim& victim, const MemoryCapture& memory)
      : victim_(memory.tracker() == TrackerKind::kSoftDirty ? &victim : nullptr) {
    if (victim_ != nullptr) victim_->stop();
  }
  ~Pause() {
    if (victim_ != nullptr) victim_->go_on();
  }
  Pause(const Pause&) = delete;
  Pause& operator=(const Pause&) = delete;

 private:
  const MemoryVictim* victim_;
};

// Takes runs as a replica would and remembers pages.
class ModelReplica : public PageSink {
 public:
  using Page = std::array<uint8_t, kPageSize>;

  std::span<uint8_t> reserve(uint64_t bytes) override;
  [[nodiscard]] uint64_t chunk_bytes_max() const override { return chunk_bytes_max_; }
  uint64_t keep(uint64_t used) override;
  void add(const PageRun& run) override;

  // Forgets what is no longer mapped, as Replica::shape does.
  void shape(const std::vector<MappingImage>& mappings);
  // Forgets lazy ranges and takes them from the process.
  void fetch_lazy(pid_t pid, const std::vector<LazyRange>& lazy);
  // Empty when every private page is what the process has; else what differs first.
  std::string difference(pid_t pid, const std::vector<MappingImage>& mappings) const;

  [[nodiscard]] bool has(uint64_t address) const { return pages_.contains(address); }
  // Zero when nothing was copied there.
  [[nodiscard]] Page page(uint64_t address) const {
    const auto found = pages_.find(address);
    return found != pages_.end() ? *found->second : Page{};
  }
  [[nodiscard]] size_t pages() const { return pages_.size(); }
  uint64_t chunk_bytes_max_ = 256 * kPageSize;

 private:
  std::map<uint64_t, std::unique_ptr<Page>> pages_;
  std::vector<uint8_t> room_;
  uint64_t kept_ = 0;
  uint64_t room_offset_ = 0;
};

}  // namespace replpage::testing
