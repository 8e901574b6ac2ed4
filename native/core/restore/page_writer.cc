#include "core/restore/page_writer.h"

#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "core/base/sys_error.h"

namespace replpage {
namespace {

constexpr size_t kVectorMax = 1024;  // IOV_MAX
constexpr size_t kDiscardsMax = 2048;
constexpr int kDontneedLocked = 24;  // MADV_DONTNEED_LOCKED, since Linux 5.18
constexpr uint64_t kZeroBytes = 1u << 20;

alignas(4096) uint8_t zero_bytes[kZeroBytes];

// Memory that no page of one process belongs to. The primary's very memory on the same machine,
// which the replica must not write; and objects of the group, whose content comes in runs of their
// own: a page for where one of them is mapped was copied earlier in the epoch, before the program
// put the object in the place of private memory.
bool is_shared(MappingKind kind) {
  return kind == MappingKind::kFileShared || kind == MappingKind::kSysvShared ||
         kind == MappingKind::kSharedObject;
}

// Copies by /proc/PID/mem, which may write what the process itself may not.
void write_forced(StubProcess& process, iovec local, iovec remote) {
  auto* from = static_cast<const uint8_t*>(local.iov_base);
  auto at = reinterpret_cast<uint64_t>(remote.iov_base);
  size_t left = local.iov_len;
  while (left > 0) {
    const ssize_t put = ::pwrite(process.memory_file(), from, left, static_cast<off_t>(at));
    if (put < 0 && errno == EINTR) continue;
    if (put <= 0) throw SysError::from_errno("write memory", at_address(process.pid(), at));
    from += put;
    at += static_cast<uint64_t>(put);
    left -= static_cast<size_t>(put);
  }
}

}  // namespace

void PageWriter::write(std::span<const PageRun> runs) {
  auto& regions = process_.memory().regions();
  size_t index = 0;
  for (const PageRun& run : runs) {
    const uint64_t run_end = run.address + run.length;
    while (index < regions.size() && regions[index].image.end <= run.address) ++index;
    for (size_t i = index; i < regions.size() && regions[i].image.start < run_end; ++i) {
      Region& region = regions[i];
      piece(run, std::max(run.address, region.image.start), std::min(run_end, region.image.end),
            region);
    }
  }
  flush_data();
  add_discard();
  flush_discards();
}

void PageWriter::piece(const PageRun& run, uint64_t start, uint64_t end, Region& region) {
  const MappingKind kind = region.image.kind;
  if (is_shared(kind)) return;
  LazyRanges& cold = process_.memory().cold();
  if (!cold.empty()) cold.erase({start, end});
  const bool copied = kind == MappingKind::kFilePrivate || kind == MappingKind::kMemfdPrivate;
  switch (run.kind) {
    case PageRunKind::kData:
      region.written = true;
      data(start, staged_.data(run.data_offset + (start - run.address), end - start), region);
      break;
    case PageRunKind::kZero:
      if (copied) {
        region.written = true;
        zeros(start, end, region);
      } else if (region.written) {
        discard(start, end, region);
      }
      break;
    case PageRunKind::kAbsent:
      if (region.written) discard(start, end, region);
      break;
    case PageRunKind::kCold:
      if (kind != MappingKind::kAnonymous) throw FormatError("cold pages of a file's mapping");
      if (cold.empty()) forbid_huge_pages();
      cold.add({start, end}, {kStoreSource, run.data_offset + (start - run.address)});
      if (region.written) discard(start, end, region);
      break;
  }
}

// A page written beside cold ones, or khugepaged, would make a huge page of them all, with zeros
// where the cold ones are missing. The promotion allows them again as the program has it, when
// faults on cold pages are served (add_passing_state): the kernel makes none over missing pages
// then.
void PageWriter::forbid_huge_pages() {
  SyscallBatch batch;
  batch.add("huge pages", SYS_prctl, {PR_SET_THP_DISABLE, 1, 0, 0, 0});
  process_.run(batch);
}

void PageWriter::data(uint64_t start, std::span<const uint8_t> bytes, const Region& region) {
  // process_vm_writev(2) only reads `local`.
  const iovec local{const_cast<uint8_t*>(bytes.data()), bytes.size()};
  const iovec remote{reinterpret_cast<void*>(start), bytes.size()};  // NOLINT: replica's address
  if ((region.image.prot & PROT_WRITE) == 0) {
    write_forced(process_, local, remote);
    return;
  }
  if (!remote_.empty()) {
    // Runs that go on where the last ended are one.
    auto* local_end = static_cast<uint8_t*>(local_.back().iov_base) + local_.back().iov_len;
    auto* remote_end = static_cast<uint8_t*>(remote_.back().iov_base) + remote_.back().iov_len;
    if (local_end == local.iov_base && remote_end == remote.iov_base) {
      local_.back().iov_len += local.iov_len;
      remote_.back().iov_len += remote.iov_len;
      return;
    }
  }
  local_.push_back(local);
  remote_.push_back(remote);
  if (local_.size() == kVectorMax) flush_data();
}

void PageWriter::zeros(uint64_t start, uint64_t end, const Region& region) {
  while (start < end) {
    const uint64_t bytes = std::min(end - start, kZeroBytes);
    data(start, {zero_bytes, bytes}, region);
    start += bytes;
  }
}

void PageWriter::discard(uint64_t start, uint64_t end, const Region& region) {
  const int advice = (region.image.flags & kLocked) != 0 ? kDontneedLocked : MADV_DONTNEED;
  if (discard_.advice == advice && discard_.range.end == start) {
    discard_.range.end = end;
    return;
  }
  add_discard();
  discard_ = {.range = {start, end}, .advice = advice};
}

void PageWriter::add_discard() {
  const PageRange range = std::exchange(discard_.range, {});
  if (range.bytes() == 0) return;
  discards_.add("discard pages", SYS_madvise, {range.start, range.bytes(), discard_.advice});
  if (discards_.operations().size() == kDiscardsMax) flush_discards();
}

void PageWriter::flush_data() {
  size_t first = 0;
  while (first < local_.size()) {
    const ssize_t put = ::process_vm_writev(process_.pid(), &local_[first], local_.size() - first,
                                            &remote_[first], remote_.size() - first, 0);
    if (put < 0 && errno != EFAULT) {
      throw SysError::from_errno("process_vm_writev", on_pid(process_.pid()));
    }
    auto left = static_cast<size_t>(std::max<ssize_t>(put, 0));
    while (first < local_.size() && left >= local_[first].iov_len) left -= local_[first++].iov_len;
    if (first == local_.size()) break;
    // It stopped inside this element, at a page it may not write.
    iovec local = local_[first], remote = remote_[first];
    local.iov_base = static_cast<uint8_t*>(local.iov_base) + left;
    remote.iov_base = static_cast<uint8_t*>(remote.iov_base) + left;
    local.iov_len = remote.iov_len = local.iov_len - left;
    write_forced(process_, local, remote);
    ++first;
  }
  local_.clear();
  remote_.clear();
}

void PageWriter::flush_discards() {
  if (discards_.empty()) return;
  process_.run(discards_);
  discards_ = {};
}

}  // namespace replpage
