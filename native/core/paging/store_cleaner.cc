#include "core/paging/store_cleaner.h"

#include <algorithm>
#include <utility>

namespace replpage {
namespace {

constexpr uint64_t kUsPerPage = 1'000'000 / StoreCleaner::kPagesPerSecond;
constexpr uint64_t kSavedUpUs = StoreCleaner::kPagesMax * kUsPerPage;
// Not for a few pages at a time.
constexpr uint64_t kWorthUs = kSavedUpUs / 4;

}  // namespace

// A segment without a page that is needed is removed without this.
std::optional<uint64_t> StoreCleaner::sparsest(const PageTable& table, uint64_t newest,
                                               double below) const {
  std::optional<uint64_t> found;
  double least = below;
  for (const auto& [segment, live] : table.live_pages()) {
    const auto written = pages_.find(segment);
    if (segment == newest || live == 0 || written == pages_.end()) continue;
    const double share = static_cast<double>(live) / static_cast<double>(written->second);
    if (share >= least) continue;
    least = share;
    found = segment;
  }
  return found;
}

std::vector<PageGroup> StoreCleaner::choose(const PageTable& table, uint64_t newest, bool full,
                                            uint64_t now_us) {
  credit_us_ = std::max(credit_us_, now_us - std::min(now_us, kSavedUpUs));
  if (batch_ || credit_us_ + kWorthUs > now_us) return {};
  const std::optional<uint64_t> segment = sparsest(table, newest, full ? kSparseWhenFull : kSparse);
  if (!segment) return {};
  const uint64_t pages_max = std::min(kPagesMax, (now_us - credit_us_) / kUsPerPage);
  std::vector<PageGroup> groups = table.pages_in({&*segment, 1}, pages_max);
  for (const PageGroup& group : groups) credit_us_ += group.range.pages() * kUsPerPage;
  return groups;
}

void StoreCleaner::begin(uint64_t ticket, std::vector<PageGroup> groups) {
  batch_ = Batch{ticket, std::move(groups)};
}

std::span<const PageGroup> StoreCleaner::under_way() const {
  if (!batch_) return {};
  return batch_->groups;
}

// Both lists ascend by process and address.
void StoreCleaner::finish(std::span<const PageGroup> written) {
  if (!batch_) return;
  auto group = batch_->groups.begin();
  for (const PageGroup& run : written) {
    const auto is_before = [&] {
      return group->pid != run.pid ? group->pid < run.pid : group->range.end <= run.range.start;
    };
    while (group != batch_->groups.end() && is_before()) ++group;
    for (auto at = group; at != batch_->groups.end() && at->pid == run.pid; ++at) {
      const PageRange both{std::max(at->range.start, run.range.start),
                           std::min(at->range.end, run.range.end)};
      if (both.start >= both.end) break;
      moved_.push_back({{at->pid, both, true, at->location + (both.start - at->range.start)},
                        run.location + (both.start - run.range.start)});
    }
  }
  batch_.reset();
}

}  // namespace replpage
