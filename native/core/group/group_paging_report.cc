// What paging tells of itself.
#include "core/group/group_paging.h"

namespace replpage {
namespace {

// What was touched in so many samples is shown as hot.
constexpr uint8_t kHotSamples = 2;

}  // namespace

std::vector<InspectedMapping> GroupPaging::inspect(const GroupImage& image, size_t cells) const {
  std::vector<InspectedMapping> mappings;
  for (const ProcessImage& process : image.processes) {
    for (const MappingImage& mapping : process.mappings) {
      if (mapping.kind != MappingKind::kAnonymous) continue;
      mappings.push_back(
          {.pid = process.pid,
           .range = mapping.range(),
           .is_stack = (mapping.flags & kGrowsDown) != 0,
           .name = mapping.anon_name,
           .cells = table_.describe(process.pid, mapping.range(), kHotSamples, cells)});
    }
  }
  return mappings;
}

PagingReport GroupPaging::report() const {
  const PageSums sums = table_.sums();
  const AgeHistogram ages = table_.resident_ages();
  const AgeHistogram again = table_.touched_again_ages();
  return {.tracker = tracker_name_,
          .samples = samples_,
          .sample_us = sample_us_,
          .period_us = pace_.period_us(),
          .sample_share = pace_.share(),
          .resident_bytes = sums.resident_bytes,
          .cold_bytes = sums.cold_bytes,
          .absent_bytes = sums.absent_bytes,
          .pending_bytes = sums.pending_bytes,
          .candidate_bytes = sums.candidate_bytes,
          .ages = {ages.begin(), ages.end()},
          .touched_again = {again.begin(), again.end()},
          .table_bytes = table_.memory_bytes(),
          .store = state_,
          .trouble = trouble_,
          .store_bytes = pager_.usage().bytes,
          .store_segments = pager_.usage().segments,
          .written_bytes = written_bytes_,
          .evicted_bytes = evicted_bytes_,
          .brought_back_bytes = brought_back_bytes_,
          .moved_bytes = moved_bytes_,
          .pager_cpu_us = pager_cpu_us_,
          .pager_pid = pager_.pid()};
}

}  // namespace replpage
