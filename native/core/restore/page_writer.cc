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
constexpr size_t kVectorAfterStop = 64;
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

// By /proc/PID/mem, which may write what the process itself may not. Returns how many bytes.
uint64_t write_forced(StubProcess& process, uint64_t at, std::span<const uint8_t> bytes) {
  for (;;) {
    const ssize_t put =
        ::pwrite(process.memory_file(), bytes.data(), bytes.size(), static_cast<off_t>(at));
    if (put > 0) return static_cast<uint64_t>(put);
    if (put == 0 || errno != EINTR) {
      throw SysError::from_errno("write memory", at_address(process.pid(), at));
    }
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
  const uint64_t cold_before = cold.pages();
  if (!cold.empty()) cold.erase({start, end});
  const bool was_cold = cold.pages() != cold_before;
  const bool copied = kind == MappingKind::kFilePrivate || kind == MappingKind::kMemfdPrivate;
  switch (run.kind) {
    case PageRunKind::kData: {
      region.written = true;
      const auto bytes = staged_.data(run.data_offset + (start - run.address), end - start);
      was_cold ? put(start, bytes) : data(start, bytes, region);
      break;
    }
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
      process_.memory().cover(process_, region);
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
  if ((region.image.prot & PROT_WRITE) == 0) return put(start, bytes);
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

// What the process may not write, and what it could not: pages that are missing and guarded.
void PageWriter::put(uint64_t start, std::span<const uint8_t> bytes) {
  while (!bytes.empty()) {
    uint64_t done = process_.memory().guard().put(start, bytes);
    if (done == 0) done = write_forced(process_, start, bytes);
    start += done;
    bytes = bytes.subspan(done);
  }
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
  // The kernel reads all vectors at every call: after a page that stopped it, others may follow.
  size_t at_once = kVectorMax;
  for (size_t first = 0; first < local_.size();) {
    const size_t count = std::min(at_once, local_.size() - first);
    const ssize_t done =
        ::process_vm_writev(process_.pid(), &local_[first], count, &remote_[first], count, 0);
    if (done < 0 && errno != EFAULT) {
      throw SysError::from_errno("process_vm_writev", on_pid(process_.pid()));
    }
    auto left = static_cast<size_t>(std::max<ssize_t>(done, 0));
    const size_t last = first + count;
    while (first < last && left >= local_[first].iov_len) left -= local_[first++].iov_len;
    if (first == last) continue;
    // It stopped inside this element.
    const iovec& local = local_[first];
    put(reinterpret_cast<uint64_t>(remote_[first].iov_base) + left,
        {static_cast<const uint8_t*>(local.iov_base) + left, local.iov_len - left});
    ++first;
    at_once = kVectorAfterStop;
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
