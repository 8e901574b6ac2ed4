#include "core/restore/mapping_plan.h"

#include <algorithm>

namespace replpage {
namespace {

// Flags that madvise(2) and mlock(2) set on memory that is there. kGrowsDown and kNoReserve come
// with mmap(2) only, and never change while the memory stays.
constexpr uint32_t kAdvisable = kHugePage | kNoHugePage | kDontFork | kDontDump | kWipeOnFork |
                                kLocked | kMergeable | kSequential | kRandom | kLockOnFault;

bool same_memory(const MappingImage& a, const MappingImage& b) {
  if (a.kind != b.kind) return false;
  if (a.kind == MappingKind::kAnonymous) return true;
  if (a.kind == MappingKind::kSysvShared && a.shm_id != b.shm_id) return false;
  return a.device == b.device && a.inode == b.inode && a.offset - a.start == b.offset - b.start;
}

// The mapping of a sorted list that contains `at`, from `index` on.
const MappingImage* mapping_at(const std::vector<MappingImage>& list, size_t& index, uint64_t at) {
  while (index < list.size() && list[index].end <= at) ++index;
  if (index == list.size() || list[index].start > at || is_special(list[index].kind)) {
    return nullptr;
  }
  return &list[index];
}

class Planner {
 public:
  void piece(PageRange range, const MappingImage* now, const MappingImage* next) {
    using Kind = MappingStep::Kind;
    if (now != nullptr && (next == nullptr || !same_memory(*now, *next))) {
      append(unmaps_, {Kind::kUnmap, range, nullptr, 0, 0});
      now = nullptr;
    }
    if (next == nullptr) return;
    if (now == nullptr) {
      append(others_, {Kind::kMap, range, next, 0, 0});
      return;
    }
    if (now->prot != next->prot || now->protection_key != next->protection_key) {
      append(others_, {Kind::kProtect, range, next, 0, now->protection_key});
    }
    if (((now->flags ^ next->flags) & kAdvisable) != 0 || now->anon_name != next->anon_name) {
      append(others_, {Kind::kAdvise, range, next, now->flags, 0});
    }
  }

  std::vector<MappingStep> take() {
    unmaps_.insert(unmaps_.end(), others_.begin(), others_.end());
    return std::move(unmaps_);
  }

 private:
  static void append(std::vector<MappingStep>& steps, const MappingStep& step) {
    if (!steps.empty()) {
      MappingStep& last = steps.back();
      if (last.kind == step.kind && last.range.end == step.range.start && last.next == step.next &&
          last.flags_before == step.flags_before && last.key_before == step.key_before) {
        last.range.end = step.range.end;
        return;
      }
    }
    steps.push_back(step);
  }

  std::vector<MappingStep> unmaps_, others_;
};

}  // namespace

bool is_special(MappingKind kind) {
  return kind == MappingKind::kVdso || kind == MappingKind::kVvar || kind == MappingKind::kVsyscall;
}

std::vector<MappingStep> plan_mappings(const std::vector<MappingImage>& now,
                                       const std::vector<MappingImage>& next) {
  std::vector<uint64_t> cuts;
  cuts.reserve(2 * (now.size() + next.size()));
  for (const auto* list : {&now, &next}) {
    for (const MappingImage& mapping : *list) {
      cuts.push_back(mapping.start);
      cuts.push_back(mapping.end);
    }
  }
  std::sort(cuts.begin(), cuts.end());
  cuts.erase(std::unique(cuts.begin(), cuts.end()), cuts.end());

  Planner planner;
  size_t now_index = 0, next_index = 0;
  for (size_t i = 0; i + 1 < cuts.size(); ++i) {
    planner.piece({cuts[i], cuts[i + 1]}, mapping_at(now, now_index, cuts[i]),
                  mapping_at(next, next_index, cuts[i]));
  }
  return planner.take();
}

}  // namespace replpage
