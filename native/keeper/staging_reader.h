// The keeper's end of the staging area: reads what the tracer put there.
#pragma once

#include <cstdint>
#include <span>

#include "core/base/unique_fd.h"
#include "core/channel/messages.h"
#include "core/restore/replica.h"

namespace replpage {

class StagingReader final : public StagedPages {
 public:
  // Throws FormatError when sizes are beyond their limits or the memory is not sealed against
  // shrinking (reading it could raise SIGBUS), SysError when it cannot be mapped.
  StagingReader(UniqueFd memory, uint64_t memory_bytes, UniqueFd spill, uint64_t spill_bytes_max);
  ~StagingReader() override;
  StagingReader(const StagingReader&) = delete;
  StagingReader& operator=(const StagingReader&) = delete;

  // Valid until the tracer takes the room back, which it does not before the answer.
  std::span<const uint8_t> data(uint64_t offset, uint64_t length) override;

  // An encoded structure. Throws FormatError when it is damaged.
  template <class T>
  T read(const StagedBytes& where) {
    return decode<T>(checked(where));
  }

 private:
  std::span<const uint8_t> checked(const StagedBytes& where);
  std::span<const uint8_t> spilled(uint64_t at, uint64_t length);

  UniqueFd memory_fd_, spill_fd_;
  uint64_t memory_bytes_ = 0, spill_bytes_max_ = 0;
  const uint8_t* memory_ = nullptr;
  const uint8_t* spill_ = nullptr;
};

}  // namespace replpage
