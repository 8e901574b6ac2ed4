// A keeper for tests: pid 1 of a PID and mount namespace of its own, which builds, fills and
// promotes a replica as it is told through a pipe.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "core/base/unique_fd.h"
#include "core/image/group_image.h"
#include "core/memory/memory_capture.h"
#include "core/memory/page_run.h"

namespace replpage::testing {

// What one epoch is made of, in memory.
class MemoryStaging : public PageSink {
 public:
  std::span<uint8_t> reserve(uint64_t bytes) override;
  [[nodiscard]] uint64_t chunk_bytes_max() const override { return 1u << 20; }
  uint64_t keep(uint64_t used) override;
  void add(const PageRun& run) override { runs.push_back(run); }

  std::vector<PageRun> runs;
  Bytes pages;

 private:
  uint64_t kept_ = 0;
};

struct KeeperAnswer {
  std::string error;  // empty: it worked
  uint64_t took_us = 0, resident_bytes = 0, served_pages = 0;
  std::string text;
  template <class A>
  void visit(A& a) {
    a(error, took_us, resident_bytes, served_pages, text);
  }
};

class TestKeeper {
 public:
  // `sources`: /proc/PID/mem of the processes that lazy ranges are read from, by group pid.
  explicit TestKeeper(const std::map<int32_t, int>& sources = {});
  ~TestKeeper();  // ends it, and with it everything in its namespace
  TestKeeper(const TestKeeper&) = delete;
  TestKeeper& operator=(const TestKeeper&) = delete;

  // All throw std::runtime_error with the keeper's error.
  KeeperAnswer apply(GroupImage& image, MemoryStaging& staging);
  KeeperAnswer promote(GroupImage& image, const std::vector<LazyRange>& lazy = {});
  KeeperAnswer free_moved();
  // /proc/PID/maps of a process in its namespace.
  std::string maps(int32_t pid);

  [[nodiscard]] pid_t pid() const { return pid_; }

 private:
  KeeperAnswer call(uint8_t kind, GroupImage* image, MemoryStaging* staging,
                    const std::vector<LazyRange>& lazy);
  pid_t pid_ = -1;
  UniqueFd socket_;
};

}  // namespace replpage::testing
