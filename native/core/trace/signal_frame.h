// A signal frame as the kernel's rt_sigreturn takes it (arch/x86/kernel/signal_64.c): it gives a
// thread back all its registers, its extended state and its signal mask, with nobody's help.
#pragma once

#include <sys/user.h>

#include <cstdint>
#include <span>
#include <vector>

namespace replpage {

struct SignalFrame {
  std::vector<uint8_t> bytes;
  // Where it must stand: the first word is the return address into a restorer, and a thread whose
  // stack pointer is here may `ret` into it.
  uint64_t address = 0;
};

// Bytes that a frame needs at most, with its alignment.
uint64_t signal_frame_size(std::span<const uint8_t> extended_state);

// `extended_state` is what PTRACE_GETREGSET gives for NT_X86_XSTATE. The frame ends below `end`.
// A system call that was interrupted is set up to be called again, since rt_sigreturn gives up the
// kernel's own way of restarting it.
SignalFrame build_signal_frame(const user_regs_struct& registers,
                               std::span<const uint8_t> extended_state, uint64_t signal_mask,
                               uint64_t restorer, uint64_t end);

}  // namespace replpage
