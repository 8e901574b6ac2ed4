#include "core/capture/slow_look.h"

#include <algorithm>

#include "core/base/clock.h"
#include "core/image/process_capture.h"
#include "core/image/task_status.h"
#include "core/memory/resident_pages.h"

namespace replpage {
namespace {

constexpr uint64_t kPeriodUs = 1'000'000;
// A look takes some 20 us a thread. It is to cost no more than this part of the time.
constexpr uint64_t kCostDivisor = 200;
constexpr uint64_t kExiting = 0x4;  // PF_EXITING of include/linux/sched.h

Refusals refusals_of(pid_t root, const std::vector<pid_t>& pids) {
  Refusals all;
  for (const pid_t pid : pids) {
    Refusals found;
    find_process_refusals(pid, found, RefusalScope::kLater);
    find_clock_refusals(root, pid, found);
    if (found.empty()) continue;
    // One that is about to end loses this and that, and is in no epoch soon.
    const auto stat = read_task_stat(pid);
    if (stat && (stat->flags & kExiting) == 0) all.insert(all.end(), found.begin(), found.end());
  }
  return all;
}

uint64_t resident_bytes(const std::vector<pid_t>& pids) {
  ResidentPages all;
  for (const pid_t pid : pids) {
    const ResidentPages pages = resident_pages(pid);
    all.own += pages.own;
    all.shared = std::max(all.shared, pages.shared);
  }
  return (all.own + all.shared) * kPageSize;
}

}  // namespace

void SlowLook::look() {
  const uint64_t began = now_us();
  if (began < due_us_) return;
  std::vector<pid_t> pids;
  {
    const std::lock_guard lock(context_.worker_mutex);
    pids = context_.capture->host_pids();
  }
  primary_bytes_ = resident_bytes(pids);
  Refusals refusals = refusals_of(context_.options.pid, pids);
  context_.irreplicable = !refusals.empty();
  if (!refusals.empty()) throw RefusedError(std::move(refusals));
  const uint64_t took_us = now_us() - began;
  due_us_ = began + std::max(kPeriodUs, took_us * kCostDivisor);
}

}  // namespace replpage
