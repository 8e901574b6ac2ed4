// Finds, in a process, the code and the memory that an injected system call can use.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <span>

namespace replpage {

// Addresses are 0 where nothing fitting was found.
struct InjectionSite {
  uint64_t syscall_return = 0;  // `syscall; ret`
  uint64_t plain_syscall = 0;   // `syscall`
  uint64_t restorer = 0;        // `mov $15, %rax; syscall`: libc's end of a signal handler
  uint64_t scratch = 0;         // memory that nobody uses
  uint64_t scratch_end = 0;
  uint64_t stack_end = 0;   // of the main stack
  uint32_t executions = 0;  // of the process, when this was found

  // A call can be made so that it ends by itself when we die in the middle.
  [[nodiscard]] bool self_completing() const { return syscall_return != 0 && restorer != 0; }
};

// Reads the executable mappings (about 1 ms for libc). Nothing is found when the process is gone.
InjectionSite find_injection_code(pid_t tid);

// True while the code is still where it was found.
bool injection_code_is_there(pid_t tid, const InjectionSite& site);

// Whether what served before serves again for `size` bytes: the main thread's stack has not grown
// near it.
bool scratch_serves(uint64_t size, uint64_t main_stack_pointer, const InjectionSite& site);

// At least `size` bytes at the far end of the main stack. When the main thread's stack pointer is
// in that stack, everything far enough below it is dead. Otherwise (0: not known, or it runs on
// another stack) only pages that were never touched, or those that an earlier call here marked.
// Small thread stacks cannot hold a signal frame (a Go stack has other data right below it), so
// this is preferred to the stack of the thread itself. Leaves scratch 0 where there is no room.
//
// `stack_pointers` of the process's threads: one that an earlier tracer's death left in the middle
// of a call still needs the frame that it stands in.
void find_scratch(pid_t tid, uint64_t size, uint64_t main_stack_pointer,
                  std::span<const uint64_t> stack_pointers, InjectionSite& site);

// Bytes at the end of the scratch memory that tell that it is ours.
inline constexpr uint64_t kScratchMarkBytes = 16;
bool mark_scratch(pid_t tid, const InjectionSite& site);

}  // namespace replpage
