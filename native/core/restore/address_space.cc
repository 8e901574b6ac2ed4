#include "core/restore/address_space.h"

#include <sys/mman.h>
#include <sys/syscall.h>

#include <algorithm>
#include <utility>

#include "core/base/sys_error.h"
#include "core/restore/address_gaps.h"
#include "core/restore/mapper.h"
#include "core/restore/mapping_batch.h"
#include "core/restore/own_memory.h"

namespace replpage {
namespace {

bool overlap(PageRange a, PageRange b) { return a.start < b.end && b.start < a.end; }

std::vector<MappingImage> special_of(const std::vector<MappingImage>& mappings) {
  std::vector<MappingImage> special;
  for (const MappingImage& mapping : mappings) {
    if (mapping.kind == MappingKind::kVdso || mapping.kind == MappingKind::kVvar) {
      special.push_back(mapping);
    }
  }
  return special;
}

void add_move(const MappingImage& from, uint64_t to, SyscallBatch& batch) {
  const uint64_t bytes = from.range().bytes();
  batch.add("move the vdso", SYS_mremap,
            {from.start, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, to});
}

}  // namespace

void AddressSpace::shape(ReplicaProcess& process, const std::vector<MappingImage>& next,
                         PageRange stub, const MappedSources& sources) {
  if (is_shaped(next)) return;
  std::vector<MappingImage> now;
  now.reserve(regions_.size());
  for (const Region& region : regions_) now.push_back(region.image);
  std::vector<MappingStep> steps = plan_mappings(now, next);
  forget_cold(steps);
  const auto unmaps_end = std::find_if(steps.begin(), steps.end(), [](const MappingStep& step) {
    return step.kind != MappingStep::Kind::kUnmap;
  });
  SyscallBatch unmaps;
  for (auto step = steps.begin(); step != unmaps_end; ++step) add_change(*step, unmaps);
  if (!unmaps.empty()) process.run(unmaps);
  steps.erase(steps.begin(), unmaps_end);

  move_special(process, next, stub);
  if (!steps.empty()) {
    allocate_keys(process, next);
    AddressGaps gaps;
    gaps.occupy(stub);
    for (const std::vector<MappingImage>* list : {&std::as_const(now), &next}) {
      for (const MappingImage& mapping : *list) gaps.occupy(mapping.range());
    }
    Mapper(process, sources, std::move(gaps)).make(steps);
  }
  keep_regions(process, next);
}

void AddressSpace::cover(ReplicaProcess& process, Region& region) {
  if (!region.guarded) guard_.cover(process, region.image.range());
  region.guarded = true;
}

void AddressSpace::forget_cold(const std::vector<MappingStep>& steps) {
  if (cold_.empty()) return;
  for (const MappingStep& step : steps) {
    const bool replaced =
        step.kind == MappingStep::Kind::kUnmap || step.kind == MappingStep::Kind::kMap;
    if (replaced) cold_.erase(step.range);
  }
}

// As a rule nothing changes from epoch to epoch.
bool AddressSpace::is_shaped(const std::vector<MappingImage>& next) const {
  size_t region = 0, special = 0;
  for (const MappingImage& mapping : next) {
    if (mapping.kind == MappingKind::kVdso || mapping.kind == MappingKind::kVvar) {
      if (special == special_.size() || special_[special++].start != mapping.start) return false;
    } else if (!is_special(mapping.kind)) {
      if (region == regions_.size() || !(regions_[region++].image == mapping)) return false;
    }
  }
  return region == regions_.size() && special == special_.size();
}

// Takes over the image, with what is known about regions that stay. One that is guarded in part has
// grown, or what differed has become alike: guarded whole before anything else is written to it, it
// is one mapping of the kernel as in the primary, and the program can mremap(2) it.
void AddressSpace::keep_regions(ReplicaProcess& process, const std::vector<MappingImage>& next) {
  std::vector<Region> regions;
  regions.reserve(next.size());
  size_t old = 0;
  for (const MappingImage& mapping : next) {
    if (is_special(mapping.kind)) continue;
    Region& region = regions.emplace_back(Region{.image = mapping});
    bool touches_guarded = false;
    while (old < regions_.size() && regions_[old].image.end <= mapping.start) ++old;
    for (size_t i = old; i < regions_.size() && regions_[i].image.start < mapping.end; ++i) {
      const Region& before = regions_[i];
      region.written |= before.written;
      touches_guarded |= before.guarded;
      const bool contained = before.image.start <= mapping.start && mapping.end <= before.image.end;
      region.guarded |= before.guarded && contained;
    }
    if (mapping.kind != MappingKind::kAnonymous) {
      region.guarded = false;
    } else if (touches_guarded) {
      cover(process, region);
    }
  }
  regions_ = std::move(regions);
}

void AddressSpace::move_special(ReplicaProcess& process, const std::vector<MappingImage>& next,
                                PageRange stub) {
  const std::vector<MappingImage> wanted = special_of(next);
  SyscallBatch batch;
  if (wanted.empty()) {
    for (const MappingImage& mapping : special_) {
      batch.add("unmap the vdso", SYS_munmap, {mapping.start, mapping.range().bytes()});
    }
    if (!batch.empty()) process.run(batch);
    special_.clear();
    return;
  }
  bool same = wanted.size() == special_.size(), crossing = false;
  for (size_t i = 0; same && i < wanted.size(); ++i) {
    same = wanted[i].kind == special_[i].kind &&
           wanted[i].range().bytes() == special_[i].range().bytes();
    for (const MappingImage& from : special_) crossing |= overlap(wanted[i].range(), from.range());
  }
  if (!same)
    throw SysError("place the vdso (it differs from the primary's)", ENOTSUP,
                   on_pid(process.pid()));
  if (wanted.front().start == special_.front().start) return;
  AddressGaps gaps;
  gaps.occupy(stub);
  for (const auto* list : {&wanted, &std::as_const(special_), &next}) {
    for (const MappingImage& mapping : *list) gaps.occupy(mapping.range());
  }
  for (const Region& region : regions_) gaps.occupy(region.image.range());
  for (size_t i = 0; i < wanted.size(); ++i) {
    MappingImage& from = special_[i];
    if (crossing) {
      const auto scratch = gaps.find(from.range().bytes());
      if (!scratch) throw SysError("move the vdso", ENOMEM, on_pid(process.pid()));
      add_move(from, *scratch, batch);
      from.end = *scratch + from.range().bytes();
      from.start = *scratch;
      gaps.occupy(from.range());
    }
  }
  for (size_t i = 0; i < wanted.size(); ++i) {
    add_move(special_[i], wanted[i].start, batch);
    special_[i] = wanted[i];
  }
  process.run(batch);
}

// Keys count up, so those below the wanted ones are allocated and freed again.
void AddressSpace::allocate_keys(ReplicaProcess& process, const std::vector<MappingImage>& next) {
  std::set<int> wanted;
  for (const MappingImage& mapping : next) {
    if (mapping.protection_key > 0 && !keys_.contains(mapping.protection_key)) {
      wanted.insert(mapping.protection_key);
    }
  }
  std::set<int> surplus;
  while (!wanted.empty()) {
    SyscallBatch batch;
    batch.add("pkey_alloc", SYS_pkey_alloc, {0, 0});
    const int key = static_cast<int>(process.run(batch).results[0]);
    if (wanted.erase(key) != 0) {
      keys_.insert(key);
    } else {
      surplus.insert(key);
    }
  }
  SyscallBatch batch;
  for (const int key : surplus) batch.add("pkey_free", SYS_pkey_free, {key});
  if (!batch.empty()) process.run(batch);
}

uint64_t AddressSpace::syscall_instruction() const {
  for (const MappingImage& mapping : special_) {
    if (mapping.kind == MappingKind::kVdso) return syscall_instruction_in_vdso(mapping.start);
  }
  return 0;
}

}  // namespace replpage
