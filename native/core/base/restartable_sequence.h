// Restartable sequences of user programs: rseq(2), linux/rseq.h.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <optional>

namespace replpage {

// Where a thread goes on that was stopped at `instruction` within a restartable sequence, as the
// kernel has it once it was preempted there: at the sequence's abort address. A copy of the thread
// that runs elsewhere must go on there too: its kernel, which sees it run other code first, takes
// the sequence for left. Nullopt when it is in none, or in one that the kernel will not accept.
// `area`: of the thread's registration, not 0. The thread must be stopped, outside a system call.
std::optional<uint64_t> abort_of_sequence(pid_t tid, uint64_t area, uint64_t instruction) noexcept;

}  // namespace replpage
