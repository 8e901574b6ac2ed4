// The code and the data area that a replica's threads live on until they run: a memfd per process,
// mapped in the replica and in the keeper.
//
//   0                    code (read, execute)
//   kStubCodeBytes       StubHeader[kStubSlotsMax]
//   + kStubHeaderBytes   data of batches, kStubDataBytes
//   + kStubDataBytes     StubOperation[kStubOperationsMax]
//
// The code uses registers only: no stack, no libc, no thread-local memory (a stale rseq area would
// kill it). A thread enters at the first byte with its header's address in r15, the first
// operation's in rbx and their number in rbp. Threads of one process run batches at the same time
// in slots that share out the area.
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
  uint64_t executed = 0;  // operations that were
  uint64_t done = 0;      // 1 when the breakpoint was reached
};

inline constexpr size_t kStubSlotsMax = 128;
static_assert(kStubSlotsMax * sizeof(StubHeader) <= kStubHeaderBytes);

// A part of the area, for one batch.
struct StubSlot {
  size_t header = 0;  // index
  uint64_t data = 0;  // offset
  size_t operation = 0;
  size_t operations = kStubOperationsMax;
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
  void load_data(const SyscallBatch& batch, const StubSlot& slot);
  // Puts operations from `first` on in place, as many as the slot takes; `results` has those
  // before. Returns how many.
  size_t load_operations(const SyscallBatch& batch, size_t first, std::span<const long> results,
                         const StubSlot& slot);

  // Registers with which a thread executes `count` operations that were loaded.
  [[nodiscard]] user_regs_struct entry(user_regs_struct registers, const StubSlot& slot,
                                       size_t count) const;

  [[nodiscard]] bool done(const StubSlot& slot) const;
  [[nodiscard]] uint64_t executed(const StubSlot& slot) const;
  [[nodiscard]] long result(const StubSlot& slot, size_t loaded) const;
  [[nodiscard]] std::span<const uint8_t> data(const StubSlot& slot, size_t bytes) const;

 private:
  [[nodiscard]] StubHeader* header(const StubSlot& slot) const;
  [[nodiscard]] StubOperation* operations(const StubSlot& slot) const;
  [[nodiscard]] uint8_t* data_area(const StubSlot& slot) const;
  // The replica's address of something in the area.
  [[nodiscard]] uint64_t remote(const void* local) const;

  UniqueFd memfd_;
  uint8_t* local_ = nullptr;
  uint64_t address_ = 0;
};

}  // namespace replpage
