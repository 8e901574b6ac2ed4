#include "core/memory/process_page_reader.h"

#include <fcntl.h>

#include "core/base/procfs.h"
#include "core/base/sys_error.h"
#include "core/memory/memory_thread.h"

namespace replpage {
namespace {

uint64_t address_of(const iovec& vector) { return reinterpret_cast<uint64_t>(vector.iov_base); }

iovec vector_of(uint64_t address, uint64_t bytes) {
  return {reinterpret_cast<void*>(address), bytes};
}

}  // namespace

ProcessPageReader::ProcessPageReader(pid_t host_pid, pid_t tid)
    : tid_(tid), memory_(open_path(thread_file(host_pid, tid, "mem"), O_RDONLY)) {}

void ProcessPageReader::read(std::span<const PageRange> ranges, std::span<uint8_t> room,
                             PageRanges& unreadable) {
  vectors_.clear();
  for (const PageRange& range : ranges) vectors_.push_back(vector_of(range.start, range.bytes()));
  for (size_t done = 0; done < room.size();) {
    if (!hidden_) done = read_vectored(room, done);
    if (done < room.size()) done = read_one_range(room, done, unreadable);
  }
}

ProcessPageReader::Probe ProcessPageReader::probe(uint64_t address) const {
  char byte = 0;
  const ssize_t got = ::pread(memory_.get(), &byte, 1, static_cast<off_t>(address));
  // mem_rw() of fs/proc/base.c returns 0 once the address space has no users any more.
  if (got == 0) return Probe::kNoAddressSpace;
  return got > 0 ? Probe::kReadable : Probe::kUnreadable;
}

// Reads on from byte `done` of the batch; returns how far it came, a multiple of the page size.
size_t ProcessPageReader::read_vectored(std::span<uint8_t> room, size_t done) {
  size_t skip = done;
  size_t first = 0;
  while (skip >= vectors_[first].iov_len) skip -= vectors_[first++].iov_len;
  iovec& head = vectors_[first];
  const iovec whole = head;
  head = vector_of(address_of(head) + skip, head.iov_len - skip);
  const iovec local = {room.data() + done, room.size() - done};
  const ssize_t got = ::process_vm_readv(tid_, &local, 1, &head, vectors_.size() - first, 0);
  const int error = errno;
  head = whole;
  if (got >= 0) return done + page_floor(static_cast<uint64_t>(got));
  if (error == EFAULT || error == ESRCH) return done;
  throw SysError("read memory", error, at_address(tid_, address_of(whole) + skip));
}

// Reads the rest of the range that byte `done` of the batch is in, page by page where need be.
size_t ProcessPageReader::read_one_range(std::span<uint8_t> room, size_t done,
                                         PageRanges& unreadable) {
  size_t skip = done;
  size_t at = 0;
  while (skip >= vectors_[at].iov_len) skip -= vectors_[at++].iov_len;
  const uint64_t end = address_of(vectors_[at]) + vectors_[at].iov_len;
  for (uint64_t address = address_of(vectors_[at]) + skip; address < end;) {
    const ssize_t got =
        ::pread(memory_.get(), room.data() + done, end - address, static_cast<off_t>(address));
    if (got < 0 && errno == EINTR) continue;
    const uint64_t bytes = got > 0 ? page_floor(static_cast<uint64_t>(got)) : 0;
    if (bytes == 0) append_range(unreadable, {address, address + kPageSize});
    address += bytes == 0 ? kPageSize : bytes;
    done += bytes == 0 ? kPageSize : bytes;
  }
  return done;
}

}  // namespace replpage
