#include "core/paging/pages_to_run.h"

#include <utility>

namespace replpage {
namespace {

// Below the stack pointer, by the ABI of x86-64.
constexpr uint64_t kRedZone = 128;
// As much as a return and its caller's frame commonly take.
constexpr uint64_t kFrameBytes = 256;
constexpr uint64_t kWordBytes = 8;

}  // namespace

PageRanges pages_to_run(const ProcessImage& process) {
  std::vector<PageRange> ranges;
  const auto add = [&ranges](uint64_t start, uint64_t bytes) {
    // A program may have any number in a register.
    if (start == 0 || start > UINT64_MAX - bytes - kPageSize) return;
    ranges.push_back({page_floor(start), page_ceil(start + bytes)});
  };
  for (const ThreadImage& thread : process.threads) {
    const uint64_t stack = thread.registers.rsp;
    if (stack > kRedZone) add(stack - kRedZone, kRedZone + kFrameBytes);
    if (thread.rseq.pointer != 0) add(thread.rseq.pointer, thread.rseq.size);
    add(thread.robust_list, thread.robust_list_size);
    add(thread.clear_child_tid, kWordBytes);
  }
  return normal_ranges(std::move(ranges));
}

}  // namespace replpage
