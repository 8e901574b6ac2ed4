#include "core/restore/stub.h"

#include <sys/mman.h>

#include <atomic>
#include <cstring>

#include "core/base/sys_error.h"

extern "C" {
extern const uint8_t replpage_stub_begin[];
extern const uint8_t replpage_stub_end[];
}

// r15: StubHeader. rbx: current operation, rbp: how many are left. Numbers are offsets in them.
asm(R"(
  .pushsection .rodata.replpage_stub, "a", @progbits
  .balign 64
  .globl replpage_stub_begin
  .hidden replpage_stub_begin
replpage_stub_begin:
1:
  testq %rbp, %rbp
  jz 9f
  movq 8(%rbx), %rdi
  movq 16(%rbx), %rsi
  movq 24(%rbx), %rdx
  movq 32(%rbx), %r10
  movq 40(%rbx), %r8
  movq 48(%rbx), %r9
  movl 68(%rbx), %eax
  testl %eax, %eax
  jnz 5f
2:
  movq (%rbx), %rax
  syscall
  movq %rax, 56(%rbx)
  incq (%r15)
  cmpq $-4095, %rax
  jae 4f
3:
  addq $72, %rbx
  decq %rbp
  jmp 1b
4:
  testl $1, 64(%rbx)
  jz 3b
9:
  movq $1, 8(%r15)
  int3
  ud2
5:
  .macro replpage_load bit, register
  testl $(1 << \bit), %eax
  jz 6f
  movslq (\register), \register
6:
  testl $(256 << \bit), %eax
  jz 7f
  movq (\register), \register
7:
  .endm
  replpage_load 0, %rdi
  replpage_load 1, %rsi
  replpage_load 2, %rdx
  replpage_load 3, %r10
  replpage_load 4, %r8
  replpage_load 5, %r9
  jmp 2b
  .globl replpage_stub_end
  .hidden replpage_stub_end
replpage_stub_end:
  .popsection
)");

namespace replpage {
namespace {

constexpr uint64_t kUserCodeSegment = 0x33, kUserDataSegment = 0x2b;  // arch/x86 segment.h
constexpr uint64_t kInterruptFlag = 0x202;

void* map(void* where, uint64_t bytes, int prot, int flags, int fd, uint64_t offset) {
  void* at = ::mmap(where, bytes, prot, flags, fd, static_cast<off_t>(offset));
  if (at == MAP_FAILED) throw SysError::from_errno("map the stub");
  return at;
}

}  // namespace

Stub::Stub() : memfd_(::memfd_create("replpage-stub", MFD_CLOEXEC)) {
  if (!memfd_.valid()) throw SysError::from_errno("memfd_create");
  if (::ftruncate(memfd_.get(), kStubBytes) != 0) throw SysError::from_errno("ftruncate");
  const auto size = static_cast<size_t>(replpage_stub_end - replpage_stub_begin);
  if (::pwrite(memfd_.get(), replpage_stub_begin, size, 0) != static_cast<ssize_t>(size)) {
    throw SysError::from_errno("write the stub's code");
  }
  local_ = static_cast<uint8_t*>(
      map(nullptr, kStubBytes, PROT_READ | PROT_WRITE, MAP_SHARED, memfd_.get(), 0));
  map(local_, kStubCodeBytes, PROT_READ | PROT_EXEC, MAP_SHARED | MAP_FIXED, memfd_.get(), 0);
}

Stub::~Stub() { ::munmap(local_, kStubBytes); }

StubHeader* Stub::header(const StubSlot& slot) const {
  return reinterpret_cast<StubHeader*>(local_ + kStubCodeBytes) + slot.header;
}

uint8_t* Stub::data_area(const StubSlot& slot) const {
  return local_ + kStubCodeBytes + kStubHeaderBytes + slot.data;
}

StubOperation* Stub::operations(const StubSlot& slot) const {
  uint8_t* all = local_ + kStubCodeBytes + kStubHeaderBytes + kStubDataBytes;
  return reinterpret_cast<StubOperation*>(all) + slot.operation;
}

uint64_t Stub::remote(const void* local) const {
  return address_ + static_cast<uint64_t>(static_cast<const uint8_t*>(local) - local_);
}

void Stub::load_data(const SyscallBatch& batch, const StubSlot& slot) {
  uint8_t* data = data_area(slot);
  std::copy(batch.data().begin(), batch.data().end(), data);
  for (const auto& [at, target] : batch.addresses()) {
    const uint64_t address = remote(data + target);
    std::memcpy(data + at, &address, sizeof address);
  }
}

size_t Stub::load_operations(const SyscallBatch& batch, size_t first, std::span<const long> results,
                             const StubSlot& slot) {
  using Kind = BatchArgument::Kind;
  const auto& all = batch.operations();
  const size_t count = std::min(all.size() - first, slot.operations);
  StubOperation* loaded = operations(slot);
  const uint64_t data = remote(data_area(slot));
  for (size_t index = 0; index < count; ++index) {
    const BatchOperation& from = all[first + index];
    StubOperation& to = loaded[index];
    to = {.number = from.number, .must_succeed = from.must_succeed ? 1u : 0u};
    for (size_t n = 0; n < from.arguments.size(); ++n) {
      const auto& [kind, value] = from.arguments[n];
      to.arguments[n] = kind == Kind::kDataAddress || kind == Kind::kLoad32 ? data + value : value;
      if (kind == Kind::kLoad32) to.loads |= 1u << n;
      if (kind != Kind::kResultOf) continue;
      if (value < first) {
        to.arguments[n] = static_cast<uint64_t>(results[value]);
      } else {
        to.arguments[n] = remote(&loaded[value - first].result);
        to.loads |= 256u << n;
      }
    }
  }
  *header(slot) = {};
  std::atomic_thread_fence(std::memory_order_seq_cst);
  return count;
}

user_regs_struct plain_entry(user_regs_struct registers) {
  registers.cs = kUserCodeSegment;
  registers.ss = kUserDataSegment;
  registers.eflags = kInterruptFlag;
  registers.orig_rax = ~0ull;
  registers.rsp = 0;
  return registers;
}

user_regs_struct Stub::entry(user_regs_struct registers, const StubSlot& slot, size_t count) const {
  registers = plain_entry(registers);
  registers.rip = address_;
  registers.r15 = remote(header(slot));
  registers.rbx = remote(operations(slot));
  registers.rbp = count;
  return registers;
}

bool Stub::done(const StubSlot& slot) const { return header(slot)->done != 0; }

uint64_t Stub::executed(const StubSlot& slot) const { return header(slot)->executed; }

long Stub::result(const StubSlot& slot, size_t loaded) const {
  return operations(slot)[loaded].result;
}

std::span<const uint8_t> Stub::data(const StubSlot& slot, size_t bytes) const {
  return {data_area(slot), bytes};
}

}  // namespace replpage
