#include "core/memory/page_copier.h"

#include <fcntl.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "core/base/procfs.h"
#include "core/base/sys_error.h"
#include "core/memory/memory_thread.h"
#include "core/memory/zero_page.h"

namespace replpage {
namespace {

// One process_vm_readv: large enough that its fixed cost vanishes, small enough that the zero test
// afterwards finds the pages in the cache.
constexpr uint64_t kBatchBytes = 1u << 20;

uint64_t address_of(const iovec& vector) { return reinterpret_cast<uint64_t>(vector.iov_base); }

iovec vector_of(uint64_t address, uint64_t bytes) {
  return {reinterpret_cast<void*>(address), bytes};
}

}  // namespace

PageCopier::PageCopier(pid_t host_pid, pid_t tid, int32_t group_pid)
    : tid_(tid),
      group_pid_(group_pid),
      memory_(open_path(thread_file(host_pid, tid, "mem"), O_RDONLY)) {
  batch_.reserve(kBatchBytes / kPageSize);
}

void PageCopier::copy(std::span<const PageRange> ranges, bool readable, PageSink& sink,
                      CopyRound& round) {
  const uint64_t bytes_max = std::min(kBatchBytes, page_floor(sink.chunk_bytes_max()));
  for (const PageRange& range : ranges) {
    for (uint64_t at = range.start; at < range.end;) {
      const uint64_t bytes = std::min(range.end - at, bytes_max - batch_bytes_);
      batch_.push_back(vector_of(at, bytes));
      batch_bytes_ += bytes;
      at += bytes;
      if (batch_bytes_ == bytes_max) copy_batch(readable, sink, round);
    }
  }
  if (batch_bytes_ != 0) copy_batch(readable, sink, round);
}

void PageCopier::add_absent(PageRange range, PageSink& sink, CopyRound& round) const {
  sink.add({.pid = group_pid_,
            .object = 0,
            .kind = PageRunKind::kAbsent,
            .address = range.start,
            .length = range.bytes(),
            .data_offset = 0});
  round.absent_pages += range.pages();
}

PageRanges PageCopier::take_unreadable() { return std::exchange(unreadable_, {}); }

PageCopier::Probe PageCopier::probe(uint64_t address) const {
  char byte = 0;
  const ssize_t got = ::pread(memory_.get(), &byte, 1, static_cast<off_t>(address));
  // mem_rw() of fs/proc/base.c returns 0 once the address space has no users any more.
  if (got == 0) return Probe::kNoAddressSpace;
  return got > 0 ? Probe::kReadable : Probe::kUnreadable;
}

void PageCopier::copy_batch(bool readable, PageSink& sink, CopyRound& round) {
  struct Reset {  // the sink may throw
    PageCopier& copier;
    ~Reset() {
      copier.batch_.clear();
      copier.batch_bytes_ = 0;
      copier.batch_unreadable_.clear();
    }
  } reset{*this};
  const std::span<uint8_t> room = sink.reserve(batch_bytes_).first(batch_bytes_);
  fill(room, readable);
  emit(room, sink, round);
}

// Fills the room with the batch's pages, one after the other.
void PageCopier::fill(std::span<uint8_t> room, bool readable) {
  for (size_t done = 0; done < room.size();) {
    if (readable) done = read_vectored(room, done);
    // What process_vm_readv stopped at, /proc/PID/mem can often read, since it ignores protection.
    if (done < room.size()) read_one_range(room, done);
  }
}

// Reads on from byte `done` of the batch; returns how far it came, a multiple of the page size.
size_t PageCopier::read_vectored(std::span<uint8_t> room, size_t done) {
  size_t skip = done;
  size_t first = 0;
  while (skip >= batch_[first].iov_len) skip -= batch_[first++].iov_len;
  iovec& head = batch_[first];
  const iovec whole = head;
  head = vector_of(address_of(head) + skip, head.iov_len - skip);
  const iovec local = {room.data() + done, room.size() - done};
  const ssize_t got = ::process_vm_readv(tid_, &local, 1, &head, batch_.size() - first, 0);
  const int error = errno;
  head = whole;
  if (got >= 0) return done + page_floor(static_cast<uint64_t>(got));
  if (error == EFAULT || error == ESRCH) return done;
  throw SysError("read memory", error, at_address(tid_, address_of(whole) + skip));
}

// Reads the rest of the range that byte `done` of the batch is in, page by page where need be.
void PageCopier::read_one_range(std::span<uint8_t> room, size_t& done) {
  size_t skip = done;
  size_t at = 0;
  while (skip >= batch_[at].iov_len) skip -= batch_[at++].iov_len;
  const uint64_t end = address_of(batch_[at]) + batch_[at].iov_len;
  for (uint64_t address = address_of(batch_[at]) + skip; address < end;) {
    const ssize_t got =
        ::pread(memory_.get(), room.data() + done, end - address, static_cast<off_t>(address));
    if (got < 0 && errno == EINTR) continue;
    const uint64_t bytes = got > 0 ? page_floor(static_cast<uint64_t>(got)) : 0;
    address += bytes;
    done += bytes;
    if (address == end || bytes != 0) continue;
    append_range(batch_unreadable_, {address, address + kPageSize});
    address += kPageSize;
    done += kPageSize;
  }
}

// Turns the room's pages into runs; the data pages move together at its front.
void PageCopier::emit(std::span<uint8_t> room, PageSink& sink, CopyRound& round) {
  runs_.clear();
  size_t used = 0;
  size_t at = 0;
  size_t lost = 0;
  for (const iovec& vector : batch_) {
    const uint64_t start = address_of(vector);
    for (uint64_t address = start; address < start + vector.iov_len; address += kPageSize) {
      uint8_t* page = room.data() + at;
      at += kPageSize;
      while (lost < batch_unreadable_.size() && batch_unreadable_[lost].end <= address) ++lost;
      if (lost < batch_unreadable_.size() && batch_unreadable_[lost].contains(address)) continue;
      if (is_zero_page(page)) {
        add_run(PageRunKind::kZero, address);
        ++round.zero_pages;
        continue;
      }
      if (room.data() + used != page) std::memcpy(room.data() + used, page, kPageSize);
      used += kPageSize;
      add_run(PageRunKind::kData, address);
      ++round.data_pages;
    }
  }
  uint64_t offset = used != 0 ? sink.keep(used) : 0;
  for (PageRun& run : runs_) {
    if (run.kind == PageRunKind::kData) {
      run.data_offset = offset;
      offset += run.length;
    }
    sink.add(run);
  }
  for (const PageRange& range : batch_unreadable_) unreadable_.push_back(range);
}

// Lengthens the last run, or begins one. Data of neighbours lies together in the room too.
void PageCopier::add_run(PageRunKind kind, uint64_t address) {
  if (!runs_.empty()) {
    PageRun& last = runs_.back();
    if (last.kind == kind && last.address + last.length == address) {
      last.length += kPageSize;
      return;
    }
  }
  runs_.push_back({.pid = group_pid_,
                   .object = 0,
                   .kind = kind,
                   .address = address,
                   .length = kPageSize,
                   .data_offset = 0});
}

}  // namespace replpage
