#include "core/restore/syscall_batch.h"

#include "core/base/sys_error.h"

namespace replpage {

size_t SyscallBatch::add(const char* label, long number, std::array<BatchArgument, 6> arguments,
                         bool must_succeed) {
  operations_.push_back({number, arguments, must_succeed, label});
  return operations_.size() - 1;
}

uint64_t SyscallBatch::put(std::span<const uint8_t> bytes) {
  const uint64_t at = reserve(bytes.size());
  std::copy(bytes.begin(), bytes.end(), data_.begin() + static_cast<ptrdiff_t>(at));
  return at;
}

uint64_t SyscallBatch::put_text(const std::string& text) {
  return put({reinterpret_cast<const uint8_t*>(text.c_str()), text.size() + 1});
}

uint64_t SyscallBatch::reserve(size_t bytes) {
  const uint64_t at = (data_.size() + 7) & ~uint64_t{7};
  if (bytes > kStubDataBytes || at > kStubDataBytes - bytes) {
    throw SysError("put " + std::to_string(bytes) + " bytes into a batch", E2BIG);
  }
  data_.resize(at + bytes);
  return at;
}

void SyscallBatch::store_address(uint64_t at, uint64_t target) {
  addresses_.emplace_back(at, target);
}

}  // namespace replpage
