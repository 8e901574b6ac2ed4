// What a victim and its replica tell a test, and memory whose content both can check.
#pragma once

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <string>

#include "core/base/unique_fd.h"
#include "test/test.h"

namespace replpage::testing {

// What a victim and its replica tell the test, through a file that all of them map.
struct Report {
  std::atomic<uint64_t> rounds;
  std::atomic<uint64_t> errors;
  std::atomic<int64_t> pid;
  std::atomic<uint64_t> values[16];
};

class ReportFile {
 public:
  ReportFile() : path_("/tmp/replpage-report-" + std::to_string(::getpid())) {
    fd_ = UniqueFd(::open(path_.c_str(), O_RDWR | O_CREAT | O_TRUNC, 0600));
    CHECK(fd_.valid() && ::ftruncate(fd_.get(), 4096) == 0);
    report_ = map();
  }
  ~ReportFile() {
    ::munmap(report_, 4096);
    ::unlink(path_.c_str());
  }
  Report* map() const {
    void* at = ::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd_.get(), 0);
    CHECK(at != MAP_FAILED);
    return static_cast<Report*>(at);
  }
  Report* operator->() const { return report_; }
  void close_file() { fd_.reset(); }

 private:
  std::string path_;
  UniqueFd fd_;
  Report* report_ = nullptr;
};

template <class Condition>
bool wait_for(Condition condition, int limit_ms = 3000) {
  for (int waited = 0; waited < limit_ms * slowness(); ++waited) {
    if (condition()) return true;
    ::usleep(1000);
  }
  return condition();
}

inline constexpr uint64_t kWords = (8u << 20) / sizeof(uint64_t);

inline void fill(uint64_t* words, uint64_t count, uint64_t seed) {
  for (uint64_t i = 0; i < count; ++i) words[i] = seed + i * 0x9E3779B97F4A7C15ull;
}

inline bool is_filled(const uint64_t* words, uint64_t count, uint64_t seed) {
  for (uint64_t i = 0; i < count; ++i) {
    if (words[i] != seed + i * 0x9E3779B97F4A7C15ull) return false;
  }
  return true;
}

inline uint64_t* new_memory(uint64_t bytes, int prot = PROT_READ | PROT_WRITE, int flags = 0) {
  void* at = ::mmap(nullptr, bytes, prot, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);
  if (at == MAP_FAILED) ::_exit(9);
  return static_cast<uint64_t*>(at);
}

[[noreturn]] inline void self_check_loop(Report* report, const uint64_t* words, uint64_t seed) {
  for (;;) {
    if (!is_filled(words, kWords, seed)) ++report->errors;
    report->pid = ::getpid();
    ++report->rounds;
    ::usleep(1000);
  }
}

// The child never comes back from `body`.
template <class Body>
pid_t fork_into(Body body) {
  const pid_t pid = ::fork();
  if (pid == 0) {
    body();
    ::_exit(9);
  }
  return pid;
}

}  // namespace replpage::testing
