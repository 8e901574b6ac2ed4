#include "core/uffd/process_memory_source.h"

#include <unistd.h>

#include "core/base/sys_error.h"

namespace replpage {

void ProcessMemorySource::read(uint64_t position, std::span<uint8_t> buffer) {
  while (!buffer.empty()) {
    const ssize_t got =
        ::pread(memory_.get(), buffer.data(), buffer.size(), static_cast<off_t>(position));
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) {
      throw SysError("read the dying process", got == 0 ? ESRCH : errno,
                     {.pid = {}, .address = position, .path = {}});
    }
    buffer = buffer.subspan(static_cast<size_t>(got));
    position += static_cast<uint64_t>(got);
  }
}

}  // namespace replpage
