#include "core/trace/remote_memory.h"

#include <sys/uio.h>

namespace replpage {

bool read_remote(pid_t pid, uint64_t address, void* to, size_t size) noexcept {
  iovec local{.iov_base = to, .iov_len = size};
  iovec remote{.iov_base = reinterpret_cast<void*>(address), .iov_len = size};  // NOLINT
  return ::process_vm_readv(pid, &local, 1, &remote, 1, 0) == static_cast<ssize_t>(size);
}

bool write_remote(pid_t pid, uint64_t address, const void* from, size_t size) noexcept {
  iovec local{.iov_base = const_cast<void*>(from), .iov_len = size};            // NOLINT: only read
  iovec remote{.iov_base = reinterpret_cast<void*>(address), .iov_len = size};  // NOLINT
  return ::process_vm_writev(pid, &local, 1, &remote, 1, 0) == static_cast<ssize_t>(size);
}

}  // namespace replpage
