// Reads pages of another process.
#pragma once

#include <sys/types.h>
#include <sys/uio.h>

#include <vector>

#include "core/base/unique_fd.h"
#include "core/memory/page_copier.h"

namespace replpage {

class ProcessPageReader : public PageReader {
 public:
  // `tid` shows the process's memory (memory_thread.h). Opens /proc/PID/mem, which stays bound to
  // the address space that the process has now. Throws SysError.
  ProcessPageReader(pid_t host_pid, pid_t tid);

  // process_vm_readv(2) first, /proc/PID/mem (which ignores protection) where that fails.
  void read(std::span<const PageRange> ranges, std::span<uint8_t> room,
            PageRanges& unreadable) override;

  // Whether the next reads are of mappings without PROT_READ, where process_vm_readv is no use.
  void set_hidden(bool hidden) { hidden_ = hidden; }

  enum class Probe : uint8_t { kReadable, kUnreadable, kNoAddressSpace };
  // Tries to read a byte, whatever the protection.
  [[nodiscard]] Probe probe(uint64_t address) const;

 private:
  size_t read_vectored(std::span<uint8_t> room, size_t done);
  size_t read_one_range(std::span<uint8_t> room, size_t done, PageRanges& unreadable);

  pid_t tid_;
  UniqueFd memory_;
  bool hidden_ = false;
  std::vector<iovec> vectors_;
};

}  // namespace replpage
