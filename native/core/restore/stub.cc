#include "core/restore/stub.h"

#include <sys/mman.h>

#include <atomic>
#include <cstring>

#include "core/base/sys_error.h"

extern "C" {
extern const uint8_t replpage_stub_begin[];
extern const uint8_t replpage_stub_end[];
}

// r15: StubHeader. rbx: current operation, rbp: how many are left. Numbers are offsets in
// StubOperation; 266240 is where operations begin, seen from the header.
asm(R"(
  .pushsection .rodata.replpage_stub, "a", @progbits
  .balign 64
  .globl replpage_stub_begin
  .hidden replpage_stub_begin
replpage_stub_begin:
  movq (%r15), %rbp
  leaq 266240(%r15), %rbx
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
  incq 8(%r15)
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
  movq $1, 16(%r15)
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

static_assert(kStubHeaderBytes + kStubDataBytes == 266240);

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

StubHeader* Stub::header() const { return reinterpret_cast<StubHeader*>(local_ + kStubCodeBytes); }

uint8_t* Stub::data_area() const { return local_ + kStubCodeBytes + kStubHeaderBytes; }

StubOperation* Stub::operations() const {
  return reinterpret_cast<StubOperation*>(data_area() + kStubDataBytes);
}

uint64_t Stub::remote_data() const { return address_ + kStubCodeBytes + kStubHeaderBytes; }

uint64_t Stub::remote_operation(size_t loaded) const {
  return remote_data() + kStubDataBytes + loaded * sizeof(StubOperation);
}

void Stub::load_data(const SyscallBatch& batch) {
  std::copy(batch.data().begin(), batch.data().end(), data_area());
  for (const auto& [at, target] : batch.addresses()) {
    const uint64_t address = remote_data() + target;
    std::memcpy(data_area() + at, &address, sizeof address);
  }
}

size_t Stub::load_operations(const SyscallBatch& batch, size_t first,
                             std::span<const long> results) {
  const auto& all = batch.operations();
  const size_t count = std::min<size_t>(all.size() - first, kStubOperationsMax);
  for (size_t index = 0; index < count; ++index) {
    const BatchOperation& from = all[first + index];
    StubOperation& to = operations()[index];
    to = {.number = from.number, .must_succeed = from.must_succeed ? 1u : 0u};
    for (size_t n = 0; n < from.arguments.size(); ++n) {
      const BatchArgument& argument = from.arguments[n];
      to.arguments[n] = argument.value;
      if (argument.kind == BatchArgument::Kind::kDataAddress) {
        to.arguments[n] += remote_data();
      } else if (argument.kind == BatchArgument::Kind::kLoad32) {
        to.arguments[n] += remote_data();
        to.loads |= 1u << n;
      } else if (argument.kind == BatchArgument::Kind::kResultOf && argument.value < first) {
        to.arguments[n] = static_cast<uint64_t>(results[argument.value]);
      } else if (argument.kind == BatchArgument::Kind::kResultOf) {
        to.arguments[n] =
            remote_operation(argument.value - first) + offsetof(StubOperation, result);
        to.loads |= 256u << n;
      }
    }
  }
  *header() = {.count = count};
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

user_regs_struct Stub::entry(user_regs_struct registers) const {
  registers = plain_entry(registers);
  registers.rip = address_;
  registers.r15 = address_ + kStubCodeBytes;
  return registers;
}

bool Stub::done() const { return header()->done != 0; }

uint64_t Stub::executed() const { return header()->executed; }

long Stub::result(size_t loaded) const { return operations()[loaded].result; }

std::span<const uint8_t> Stub::data(size_t bytes) const { return {data_area(), bytes}; }

}  // namespace replpage
