#include "core/staging/epoch_runs.h"

#include <algorithm>
#include <map>
#include <set>
#include <utility>

#include "core/base/clock.h"
#include "core/base/not_this_time.h"

namespace replpage {
namespace {

const MappingImage* first_ending_after(const std::vector<MappingImage>& mappings,
                                       uint64_t address) {
  const auto found = std::upper_bound(mappings.begin(), mappings.end(), address,
                                      [](uint64_t a, const MappingImage& m) { return a < m.end; });
  return found == mappings.end() ? nullptr : &*found;
}

// Adds the parts of `run` that lie in `mappings`.
void clip(const PageRun& run, const std::vector<MappingImage>& mappings,
          std::vector<PageRun>& out) {
  const uint64_t end = run.address + run.length;
  const MappingImage* last = mappings.data() + mappings.size();
  for (const MappingImage* m = first_ending_after(mappings, run.address);
       m != nullptr && m != last && m->start < end; ++m) {
    PageRun part = run;
    part.address = std::max(run.address, m->start);
    part.length = std::min(end, m->end) - part.address;
    part.data_offset += part.address - run.address;
    out.push_back(part);
  }
}

bool knows_object(const GroupImage& image, uint32_t id) {
  return std::any_of(image.shared_objects.begin(), image.shared_objects.end(),
                     [id](const SharedObjectImage& object) { return object.id == id; });
}

}  // namespace

void EpochRuns::add(const PageRun& run) {
  if (run.kind == PageRunKind::kData) data_pages_ += run.length / kPageSize;
  if (!runs_.empty() && staging_.joins(runs_.back(), run)) {
    runs_.back().length += run.length;
  } else {
    runs_.push_back(run);
  }
}

std::span<uint8_t> FrozenRuns::reserve(uint64_t bytes) {
  if (now_us() > deadline_us_)
    throw NotThisTime("what was written is not copied within the longest pause (--max-pause)");
  const std::span<uint8_t> room = runs_.reserve_in_memory(bytes);
  if (room.empty()) throw NotThisTime("what was written does not fit the staging memory");
  return room;
}

void EpochRuns::clear() {
  runs_.clear();
  data_pages_ = 0;
}

PageRunList EpochRuns::fitted(const GroupImage& image) const {
  std::map<int32_t, const std::vector<MappingImage>*> mappings;
  for (const ProcessImage& process : image.processes) mappings[process.pid] = &process.mappings;
  PageRunList list;
  list.runs.reserve(runs_.size());
  for (const PageRun& run : runs_) {
    if (run.pid == 0) {
      if (knows_object(image, run.object)) list.runs.push_back(run);
      continue;
    }
    const auto of = mappings.find(run.pid);
    if (of != mappings.end()) clip(run, *of->second, list.runs);
  }
  return list;
}

std::vector<LazyRange> EpochRuns::as_lazy(const GroupImage& image) const {
  std::map<int32_t, const std::vector<MappingImage>*> mappings;
  for (const ProcessImage& process : image.processes) mappings[process.pid] = &process.mappings;
  std::set<std::pair<int32_t, uint64_t>> seen;
  std::vector<LazyRange> lazy;
  for (const PageRun& run : runs_) {
    const auto of = mappings.find(run.pid);
    if (run.pid == 0 || of == mappings.end()) continue;
    const MappingImage* last = of->second->data() + of->second->size();
    for (const MappingImage* mapping = first_ending_after(*of->second, run.address);
         mapping != nullptr && mapping != last && mapping->start < run.address + run.length;
         ++mapping) {
      if (mapping->kind != MappingKind::kAnonymous) continue;
      if (!seen.emplace(run.pid, mapping->start).second) continue;
      lazy.push_back({run.pid, mapping->start, mapping->end});
    }
  }
  return lazy;
}

}  // namespace replpage
