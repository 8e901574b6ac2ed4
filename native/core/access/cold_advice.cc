#include "core/access/cold_advice.h"

#include <fcntl.h>
#include <limits.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <string>

#include "core/base/procfs.h"
#include "core/base/sys_error.h"
#include "core/memory/swap_areas.h"

namespace replpage {
namespace {

constexpr const char* kHugePageFolder = "/sys/kernel/mm/transparent_hugepage/";
constexpr const char* kDemotion = "/sys/kernel/mm/numa/demotion_enabled";

constexpr unsigned kPidfdThread = O_EXCL;  // PIDFD_THREAD, since Linux 6.9

// Going over so many pages that were not touched costs no more than a range of its own (measured
// with 4 to 8 alike; twice as much without joining).
constexpr uint64_t kGapBytes = 8 * kPageSize;
// About a millisecond under the lock of the address space.
constexpr uint64_t kBytesPerCall = 64u << 20;

std::string text_of(const std::string& path) {
  try {
    return read_proc(path).value_or("");
  } catch (const SysError&) {
    return "";
  }
}

bool is_on(const std::string& setting) {
  return !setting.empty() && setting.find("[never]") == std::string::npos;
}

}  // namespace

bool anonymous_memory_can_go() { return swap_in_use() || text_of(kDemotion).starts_with("true"); }

uint64_t folio_bytes_max() {
  const bool huge_on = is_on(text_of(std::string(kHugePageFolder) + "enabled"));
  uint64_t largest = kPageSize;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(kHugePageFolder, error)) {
    unsigned long kib = 0;
    const std::string name = entry.path().filename();
    if (std::sscanf(name.c_str(), "hugepages-%lukB", &kib) != 1 || kib >= 2048) continue;
    const std::string setting = text_of(entry.path() / "enabled");
    const bool inherits = setting.find("[inherit]") != std::string::npos;
    if (inherits ? huge_on : is_on(setting)) largest = std::max(largest, uint64_t{kib} * 1024);
  }
  return largest;
}

PageRanges plan_advice(std::span<const PageRange> touched, std::span<const PageRange> mapped,
                       uint64_t folio_bytes) {
  PageRanges plan;
  auto within = mapped.begin();
  for (const PageRange& range : touched) {
    // A touched range may cover several mappings that touch.
    for (uint64_t at = range.start; at < range.end;) {
      while (within != mapped.end() && within->end <= at) ++within;
      if (within == mapped.end() || within->start >= range.end) break;
      PageRange next{std::max(at, within->start), std::min(range.end, within->end)};
      at = next.end;
      next.start = std::max(next.start & ~(folio_bytes - 1), within->start);
      next.end = std::min((next.end + folio_bytes - 1) & ~(folio_bytes - 1), within->end);
      const bool joins = !plan.empty() && plan.back().start >= within->start &&
                         plan.back().end + kGapBytes >= next.start;
      if (joins) {
        plan.back().end = std::max(plan.back().end, next.end);
      } else {
        plan.push_back(next);
      }
    }
  }
  return plan;
}

ColdAdvice::ColdAdvice(pid_t host_tid)
    : process_(static_cast<int>(::syscall(SYS_pidfd_open, host_tid, 0))) {
  if (!process_.valid() && errno != ESRCH) {
    process_.reset(static_cast<int>(::syscall(SYS_pidfd_open, host_tid, kPidfdThread)));
  }
  if (!process_.valid()) throw SysError::from_errno("open a pidfd", on_pid(host_tid));
}

ColdAdvice::Outcome ColdAdvice::give(std::span<const PageRange> ranges) {
  vectors_.clear();
  uint64_t bytes = 0;
  for (size_t i = 0; i < ranges.size(); ++i) {
    for (uint64_t at = ranges[i].start; at < ranges[i].end;) {
      // Parts of long ranges end where huge pages do.
      const uint64_t end = std::min(ranges[i].end, (at / kBytesPerCall + 1) * kBytesPerCall);
      vectors_.push_back({reinterpret_cast<void*>(at), end - at});
      bytes += end - at;
      at = end;
      if (bytes < kBytesPerCall && vectors_.size() < IOV_MAX) continue;
      if (const Outcome outcome = give_some(vectors_); outcome != Outcome::kGiven) return outcome;
      vectors_.clear();
      bytes = 0;
    }
  }
  return give_some(vectors_);
}

// The call ends at the first range that it cannot advise, and tells the bytes before it.
ColdAdvice::Outcome ColdAdvice::give_some(std::span<const iovec> vectors) {
  while (!vectors.empty()) {
    long done = ::syscall(SYS_process_madvise, process_.get(), vectors.data(), vectors.size(),
                          MADV_COLD, 0);
    if (done < 0 && (errno == EINTR || errno == EAGAIN)) continue;
    if (done < 0 && errno == ESRCH) return Outcome::kGone;
    if (done < 0 && errno != ENOMEM && errno != EINVAL) return Outcome::kRefused;
    while (!vectors.empty() && done >= static_cast<long>(vectors.front().iov_len)) {
      done -= static_cast<long>(vectors.front().iov_len);
      vectors = vectors.subspan(1);
    }
    if (!vectors.empty()) vectors = vectors.subspan(1);
  }
  return Outcome::kGiven;
}

}  // namespace replpage
