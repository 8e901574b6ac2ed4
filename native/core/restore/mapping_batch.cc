#include "core/restore/mapping_batch.h"

#include <linux/prctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/shm.h>
#include <sys/syscall.h>

#include "core/base/sys_error.h"

namespace replpage {
namespace {

struct Advice {
  uint32_t flag;
  int set, clear;  // madvise(2); clear 0: cannot be undone
};
constexpr Advice kAdvices[] = {
    {kHugePage, MADV_HUGEPAGE, 0},
    {kNoHugePage, MADV_NOHUGEPAGE, 0},
    {kDontFork, MADV_DONTFORK, MADV_DOFORK},
    {kDontDump, MADV_DONTDUMP, MADV_DODUMP},
    {kWipeOnFork, MADV_WIPEONFORK, MADV_KEEPONFORK},
    {kMergeable, MADV_MERGEABLE, MADV_UNMERGEABLE},
    {kSequential, MADV_SEQUENTIAL, MADV_NORMAL},
    {kRandom, MADV_RANDOM, MADV_NORMAL},
};

void add_advice(const MappingStep& step, SyscallBatch& batch) {
  const auto& [start, end] = step.range;
  const uint32_t flags = step.next->flags, before = step.flags_before;
  // Advice may be unknown to this kernel's configuration (KSM, huge pages): it changes no content.
  for (const Advice& advice : kAdvices) {
    const bool is = (flags & advice.flag) != 0, was = (before & advice.flag) != 0;
    if (!is && was && advice.clear != 0) {
      batch.add("madvise", SYS_madvise, {start, end - start, advice.clear}, false);
    }
    if (is && !was) batch.add("madvise", SYS_madvise, {start, end - start, advice.set}, false);
  }
  // What the primary has locked is there, and so it is in the replica: nothing has to be faulted
  // in, which could take long or wait for a page that is served later.
  if ((flags & kLocked) != 0 && (before & kLocked) == 0) {
    batch.add("mlock", SYS_mlock2, {start, end - start, MLOCK_ONFAULT});
  } else if ((flags & kLocked) == 0 && (before & kLocked) != 0) {
    batch.add("munlock", SYS_munlock, {start, end - start});
  }
  if (!step.next->anon_name.empty()) {
    batch.add("mapping name", SYS_prctl,
              {PR_SET_VMA, PR_SET_VMA_ANON_NAME, start, end - start,
               BatchArgument::data(batch.put_text(step.next->anon_name))},
              false);
  }
}

void add_protection(const MappingStep& step, SyscallBatch& batch) {
  const MappingImage& next = *step.next;
  const auto& [start, end] = step.range;
  // mprotect(2) keeps the key, and pkey_mprotect(2) is not in every kernel.
  if (next.protection_key == 0 && step.key_before == 0) {
    batch.add("mprotect", SYS_mprotect, {start, end - start, next.prot});
  } else {
    batch.add("pkey_mprotect", SYS_pkey_mprotect,
              {start, end - start, next.prot, next.protection_key});
  }
}

// Only whole segments can be attached; the part wanted is moved into place.
void add_segment(const MappingStep& step, const MapSource& source, SyscallBatch& batch) {
  const MappingImage& next = *step.next;
  const uint64_t length = step.range.bytes();
  const uint64_t offset = next.offset + (step.range.start - next.start);
  const int flags = ((next.prot & PROT_WRITE) == 0 ? SHM_RDONLY : 0) |
                    ((next.prot & PROT_EXEC) != 0 ? SHM_EXEC : 0);
  batch.add("shmat", SYS_shmat, {next.shm_id, source.scratch, flags});
  batch.add(
      "move shared memory segment", SYS_mremap,
      {source.scratch + offset, length, length, MREMAP_MAYMOVE | MREMAP_FIXED, step.range.start});
  if (offset > 0) batch.add("munmap", SYS_munmap, {source.scratch, offset});
  const uint64_t rest = page_ceil(source.segment_bytes) - offset - length;
  if (rest > 0) batch.add("munmap", SYS_munmap, {source.scratch + offset + length, rest});
  if ((next.prot & (PROT_READ | PROT_WRITE)) == 0) add_protection(step, batch);
}

int map_flags(const MappingImage& next) {
  int flags = MAP_FIXED_NOREPLACE;
  switch (next.kind) {
    case MappingKind::kAnonymous:
      flags |= MAP_PRIVATE | MAP_ANONYMOUS;
      break;
    case MappingKind::kFilePrivate:
    case MappingKind::kMemfdPrivate:
      flags |= MAP_PRIVATE;
      break;
    default:
      flags |= MAP_SHARED;
  }
  if ((next.flags & kGrowsDown) != 0) flags |= MAP_GROWSDOWN;
  if ((next.flags & kNoReserve) != 0) flags |= MAP_NORESERVE;
  return flags;
}

// Memory that was writable once counts as committed for ever, and only what agrees in that is
// merged with its neighbours: else one mapping of the program would be two here, and mremap(2) of
// it would fail. Nobody maps anonymous memory to read nothing but zeros; what has no rights at all
// may be reserved address space, too much to be committed.
bool was_writable(const MappingImage& next) {
  return next.kind == MappingKind::kAnonymous && (next.flags & kNoReserve) == 0 &&
         (next.prot & PROT_READ) != 0 && (next.prot & PROT_WRITE) == 0;
}

}  // namespace

void add_map(const MappingStep& step, const MapSource& source, SyscallBatch& batch) {
  const MappingImage& next = *step.next;
  if (next.kind == MappingKind::kSysvShared) {
    add_segment(step, source, batch);
  } else {
    const bool anonymous = next.kind == MappingKind::kAnonymous;
    const uint64_t offset = anonymous ? 0 : next.offset + (step.range.start - next.start);
    const uint32_t prot = was_writable(next) ? PROT_READ | PROT_WRITE : next.prot;
    batch.add(
        "mmap", SYS_mmap,
        {step.range.start, step.range.bytes(), prot, map_flags(next), source.descriptor, offset});
  }
  if (next.protection_key > 0 || was_writable(next)) add_protection(step, batch);
  add_advice(step, batch);
}

void add_change(const MappingStep& step, SyscallBatch& batch) {
  switch (step.kind) {
    case MappingStep::Kind::kUnmap:
      batch.add("munmap", SYS_munmap, {step.range.start, step.range.bytes()});
      break;
    case MappingStep::Kind::kProtect:
      add_protection(step, batch);
      break;
    case MappingStep::Kind::kAdvise:
      add_advice(step, batch);
      break;
    case MappingStep::Kind::kMap:
      break;
  }
}

}  // namespace replpage
