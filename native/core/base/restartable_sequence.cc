#include "core/base/restartable_sequence.h"

#include <sys/uio.h>

namespace replpage {
namespace {

constexpr uint64_t kSectionPointer = 8;  // offset of rseq_cs in struct rseq

struct RseqSection {  // struct rseq_cs
  uint32_t version, flags;
  uint64_t start, length, abort;
};

template <class T>
bool read_value(pid_t tid, uint64_t address, T& value) {
  const iovec local{.iov_base = &value, .iov_len = sizeof value};
  const iovec remote{.iov_base = reinterpret_cast<void*>(address),  // NOLINT: tracee's
                     .iov_len = sizeof value};
  return ::process_vm_readv(tid, &local, 1, &remote, 1, 0) == sizeof value;
}

}  // namespace

std::optional<uint64_t> abort_of_sequence(pid_t tid, uint64_t area, uint64_t instruction) noexcept {
  uint64_t address = 0;
  RseqSection section{};
  if (!read_value(tid, area + kSectionPointer, address) || address == 0) return std::nullopt;
  if (!read_value(tid, address, section)) return std::nullopt;
  if (section.version != 0 || section.flags != 0) return std::nullopt;
  if (instruction - section.start >= section.length) return std::nullopt;
  return section.abort;
}

}  // namespace replpage
