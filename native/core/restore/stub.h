// The code and the data area that a replica's threads live on until they run: a memfd per process,
// mapped in the replica and in the keeper.
//
//   0                    code (read, execute)
//   kStubCodeBytes       StubHeader
//   + kStubHeaderBytes   data of the batch, kStubDataBytes
//   + kStubDataBytes     StubOperation[kStubOperationsMax]
//
// The code uses registers only: no stack, no libc, no thread-local memory (a stale rseq area would
// kill it). A thread enters at the first byte with the area's address in r15.
#pragma once

#include <sys/user.h>

#include <cstdint>
#include <span>

#include "core/base/unique_fd.h"
#include "core/restore/syscall_batch.h"

namespace replpage {

inline constexpr uint64_t kStubCodeBytes = 4096;
inline constexpr uint64_t kStubHeaderBytes = 4096;
inline constexpr uint64_t kStubOperationsMax = 2048;  // of one load(); longer batches are split

struct StubHeader {
  uint64_t count = 0;     // operations to execute
  uint64_t executed = 0;  // how many were
  uint64_t done = 0;      // 1 when the breakpoint was reached
};

struct StubOperation {
  int64_t number = 0;
  uint64_t arguments[6] = {};
  int64_t result = 0;
  uint32_t must_succeed = 0;
  uint32_t loads = 0;  // bit n: argument n is the address of an int32, bit 8 + n: of a 64-bit value
};
static_assert(sizeof(StubOperation) == 72);

inline constexpr uint64_t kStubBytes =
    kStubCodeBytes + kStubHeaderBytes + kStubDataBytes + kStubOperationsMax * sizeof(StubOperation);
static_assert(kStubBytes % 4096 == 0);

// General registers for code of ours: user segments, no stack, no system call to restart.
user_regs_struct plain_entry(user_regs_struct registers);

class Stub {
 public:
  // Creates the memfd with the code in it and maps it here. Throws SysError.
  Stub();
  ~Stub();
  Stub(const Stub&) = delete;
  Stub& operator=(const Stub&) = delete;

  [[nodiscard]] int memfd() const { return memfd_.get(); }
  // Where the keeper itself has it; a child of the keeper can run there before it has its own.
  [[nodiscard]] uint64_t local_address() const { return reinterpret_cast<uint64_t>(local_); }

  // Where the replica has it.
  [[nodiscard]] uint64_t address() const { return address_; }
  void set_address(uint64_t address) { address_ = address; }

  // Puts data in place, all addresses resolved for address().
  void load_data(const SyscallBatch& batch);
  // Puts operations [first, first + kStubOperationsMax) in place; `results` has those before
  // `first`. Returns how many.
  size_t load_operations(const SyscallBatch& batch, size_t first, std::span<const long> results);

  // Registers with which a thread executes what was loaded.
  [[nodiscard]] user_regs_struct entry(user_regs_struct registers) const;

  [[nodiscard]] bool done() const;
  [[nodiscard]] uint64_t executed() const;
  [[nodiscard]] long result(size_t loaded) const;
  [[nodiscard]] std::span<const uint8_t> data(size_t bytes) const;

 private:
  [[nodiscard]] StubHeader* header() const;
  [[nodiscard]] StubOperation* operations() const;
  [[nodiscard]] uint8_t* data_area() const;
  [[nodiscard]] uint64_t remote_data() const;
  [[nodiscard]] uint64_t remote_operation(size_t loaded) const;

  UniqueFd memfd_;
  uint8_t* local_ = nullptr;
  uint64_t address_ = 0;
};

}  // namespace replpage
