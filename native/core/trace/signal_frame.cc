#include "core/trace/signal_frame.h"

#include <asm/sigcontext.h>
#include <cpuid.h>

#include <algorithm>
#include <cstddef>
#include <cstring>

namespace replpage {
namespace {

constexpr uint64_t kFlagExtendedState = 1;  // UC_FP_XSTATE
constexpr uint64_t kFlagStackSegment = 2;   // UC_SIGCONTEXT_SS
constexpr uint64_t kFlagStrictSegment = 4;  // UC_STRICT_RESTORE_SS
// No such mode: the kernel then leaves the alternate stack as it is (restore_altstack).
constexpr int kNoSuchStackMode = 0x1234;
constexpr uint64_t kProtectionKeys = 1u << 9;
constexpr uint64_t kLegacyBytes = 512;
constexpr uint64_t kHeaderBytes = 64;
constexpr uint64_t kInstructionBytes = 2;  // of `syscall`

struct KernelStack {
  uint64_t pointer;
  int32_t flags;
  int32_t padding;
  uint64_t size;
};

struct KernelContext {
  uint64_t flags;
  uint64_t link;
  KernelStack stack;
  sigcontext machine;
  uint64_t signal_mask;
};

struct KernelFrame {
  uint64_t restorer;
  KernelContext context;
  uint8_t siginfo[128];
};
static_assert(sizeof(sigcontext) == 256 && offsetof(KernelFrame, context) == 8);

uint64_t word_at(std::span<const uint8_t> bytes, size_t at) {
  uint64_t value = 0;
  std::memcpy(&value, bytes.data() + at, sizeof value);
  return value;
}

// End of the last component that is in use. The regset is as long as the machine's largest state,
// which can be more than this thread has the permission to have (AMX).
uint64_t used_bytes(uint64_t components, uint64_t available) {
  uint64_t end = kLegacyBytes + kHeaderBytes;
  for (unsigned i = 2; i < 63; ++i) {
    if ((components >> i & 1) == 0) continue;
    unsigned size = 0, offset = 0, c = 0, d = 0;
    __cpuid_count(0xd, i, size, offset, c, d);
    end = std::max<uint64_t>(end, uint64_t{offset} + size);
  }
  return std::min(end, available);
}

std::vector<uint8_t> build_extended_state(std::span<const uint8_t> state) {
  std::vector<uint8_t> bytes(state.begin(), state.end());
  if (state.size() < kLegacyBytes + kHeaderBytes) return bytes;
  const uint64_t enabled = word_at(state, offsetof(_fpstate_64, sw_reserved));
  // ptrace gives the protection keys register also when its bit is not set.
  const uint64_t components = word_at(state, kLegacyBytes) | (enabled & kProtectionKeys) | 3;
  bytes.resize(used_bytes(components, state.size()));
  std::memcpy(bytes.data() + kLegacyBytes, &components, sizeof components);
  _fpx_sw_bytes software{};
  software.magic1 = FP_XSTATE_MAGIC1;
  software.extended_size = static_cast<uint32_t>(bytes.size() + FP_XSTATE_MAGIC2_SIZE);
  software.xfeatures = components;
  software.xstate_size = static_cast<uint32_t>(bytes.size());
  std::memcpy(bytes.data() + offsetof(_fpstate_64, sw_reserved), &software, sizeof software);
  const uint32_t magic = FP_XSTATE_MAGIC2;
  const auto* raw = reinterpret_cast<const uint8_t*>(&magic);
  bytes.insert(bytes.end(), raw, raw + sizeof magic);
  return bytes;
}

// -ERESTARTSYS, -ERESTARTNOINTR, -ERESTARTNOHAND, -ERESTART_RESTARTBLOCK of an interrupted call.
bool is_interrupted_call(const user_regs_struct& registers) {
  const auto result = static_cast<int64_t>(registers.rax);
  const auto call = static_cast<int64_t>(registers.orig_rax);
  return call >= 0 && (result == -512 || result == -513 || result == -514 || result == -516);
}

sigcontext machine_context(user_regs_struct from) {
  if (is_interrupted_call(from)) {
    from.rip -= kInstructionBytes;
    from.rax = from.orig_rax;
  }
  sigcontext to{};
  to.r8 = from.r8;
  to.r9 = from.r9;
  to.r10 = from.r10;
  to.r11 = from.r11;
  to.r12 = from.r12;
  to.r13 = from.r13;
  to.r14 = from.r14;
  to.r15 = from.r15;
  to.rdi = from.rdi;
  to.rsi = from.rsi;
  to.rbp = from.rbp;
  to.rbx = from.rbx;
  to.rdx = from.rdx;
  to.rax = from.rax;
  to.rcx = from.rcx;
  to.rsp = from.rsp;
  to.rip = from.rip;
  to.eflags = from.eflags;
  to.cs = static_cast<uint16_t>(from.cs);
  to.ss = static_cast<uint16_t>(from.ss);
  return to;
}

}  // namespace

uint64_t signal_frame_size(std::span<const uint8_t> extended_state) {
  return sizeof(KernelFrame) + extended_state.size() + FP_XSTATE_MAGIC2_SIZE + 128;
}

SignalFrame build_signal_frame(const user_regs_struct& registers,
                               std::span<const uint8_t> extended_state, uint64_t signal_mask,
                               uint64_t restorer, uint64_t end) {
  const std::vector<uint8_t> state = build_extended_state(extended_state);
  const uint64_t state_address = (end - state.size()) & ~uint64_t{63};
  SignalFrame frame;
  frame.address = (state_address - sizeof(KernelFrame)) & ~uint64_t{15};
  KernelFrame head{};
  head.restorer = restorer;
  head.context.flags = kFlagExtendedState | kFlagStackSegment | kFlagStrictSegment;
  head.context.stack.flags = kNoSuchStackMode;
  head.context.machine = machine_context(registers);
  head.context.machine.fpstate = reinterpret_cast<decltype(sigcontext::fpstate)>(state_address);
  head.context.signal_mask = signal_mask;
  frame.bytes.resize(state_address + state.size() - frame.address);
  std::memcpy(frame.bytes.data(), &head, sizeof head);
  std::memcpy(frame.bytes.data() + (state_address - frame.address), state.data(), state.size());
  return frame;
}

}  // namespace replpage
