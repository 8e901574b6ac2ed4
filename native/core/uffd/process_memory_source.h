// Pages of a process that does not run any more: position is the address there.
#pragma once

#include "core/base/unique_fd.h"
#include "core/uffd/page_source.h"

namespace replpage {

class ProcessMemorySource final : public PageSource {
 public:
  // A descriptor of /proc/PID/mem.
  explicit ProcessMemorySource(UniqueFd memory) : memory_(std::move(memory)) {}

  // Throws SysError: the process is gone.
  void read(uint64_t position, std::span<uint8_t> buffer) override;
  bool try_read(uint64_t position, std::span<uint8_t> buffer) override {
    read(position, buffer);
    return true;
  }

 private:
  UniqueFd memory_;
};

}  // namespace replpage
