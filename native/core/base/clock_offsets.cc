#include "core/base/clock_offsets.h"

#include <fcntl.h>
#include <sched.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <sstream>
#include <string>

#include "core/base/clock.h"
#include "core/base/procfs.h"
#include "core/base/sys_error.h"

namespace replpage {
namespace {

constexpr int64_t kSecond = 1'000'000'000;
constexpr const char* kOwnOffsets = "/proc/self/timens_offsets";

// The kernel takes no negative nanoseconds (proc_timens_set_offset in kernel/time/namespace.c).
std::string line_of(const char* clock, int64_t offset) {
  int64_t seconds = offset / kSecond, rest = offset % kSecond;
  if (rest < 0) {
    rest += kSecond;
    --seconds;
  }
  return std::string(clock) + " " + std::to_string(seconds) + " " + std::to_string(rest) + "\n";
}

ClockOffsets children_ahead;  // NOLINT: of this process, like the namespace itself

}  // namespace

int64_t ClockOffsets::of(clockid_t clock) const {
  switch (clock) {
    case CLOCK_MONOTONIC:
    case CLOCK_MONOTONIC_RAW:
    case CLOCK_MONOTONIC_COARSE:
      return monotonic_ns;
    case CLOCK_BOOTTIME:
    case CLOCK_BOOTTIME_ALARM:
      return boottime_ns;
    default:
      return 0;
  }
}

ClockOffsets operator+(const ClockOffsets& one, const ClockOffsets& other) {
  return {one.monotonic_ns + other.monotonic_ns, one.boottime_ns + other.boottime_ns};
}

ClockOffsets operator-(const ClockOffsets& one, const ClockOffsets& other) {
  return {one.monotonic_ns - other.monotonic_ns, one.boottime_ns - other.boottime_ns};
}

ClockReadings read_clocks() {
  return {.monotonic_ns = static_cast<int64_t>(clock_ns(CLOCK_MONOTONIC)),
          .boottime_ns = static_cast<int64_t>(clock_ns(CLOCK_BOOTTIME))};
}

ClockOffsets ahead_of(const ClockReadings& theirs, const ClockReadings& ours) {
  return {ours.monotonic_ns - theirs.monotonic_ns, ours.boottime_ns - theirs.boottime_ns};
}

ClockOffsets clock_offsets_of(pid_t pid) {
  const auto text = read_proc("/proc/" + std::to_string(pid) + "/timens_offsets");
  ClockOffsets offsets;
  if (!text) return offsets;
  std::istringstream lines(*text);
  std::string clock;
  int64_t seconds = 0, rest = 0;
  while (lines >> clock >> seconds >> rest) {
    const int64_t offset = seconds * kSecond + rest;
    // Both names and numbers are known to time_namespaces(7).
    if (clock == "monotonic" || clock == "1") offsets.monotonic_ns = offset;
    if (clock == "boottime" || clock == "7") offsets.boottime_ns = offset;
  }
  return offsets;
}

void set_clocks_of_children(const ClockOffsets& ahead) {
  const ClockOffsets offsets = clock_offsets_of(::getpid()) + ahead;
  if (::unshare(CLONE_NEWTIME) != 0) throw SysError::from_errno("unshare the time namespace");
  const UniqueFd file = open_path(kOwnOffsets, O_WRONLY);
  const std::string text =
      line_of("monotonic", offsets.monotonic_ns) + line_of("boottime", offsets.boottime_ns);
  if (::write(file.get(), text.data(), text.size()) != static_cast<ssize_t>(text.size())) {
    throw SysError::from_errno("set the replica's clocks", on_path(kOwnOffsets));
  }
  children_ahead = ahead;
}

ClockOffsets clocks_of_children() { return children_ahead; }

}  // namespace replpage
