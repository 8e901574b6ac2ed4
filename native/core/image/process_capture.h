// Reads the kernel state of stopped processes into images.
#pragma once

#include <sys/types.h>

#include <array>
#include <functional>
#include <optional>
#include <vector>

#include "core/image/process_image.h"
#include "core/image/refusal.h"

namespace replpage {

// Runs a system call in the stopped thread `tid`; see TraceTree::inject. Empty: must not inject
// (steady state, exit stop): what only injection can learn is taken from `previous`.
using Inject =
    std::function<std::optional<long>(pid_t tid, long number, std::array<uint64_t, 6> arguments,
                                      std::vector<uint8_t>* argument_data)>;

// Argument that stands for the address of `argument_data` (TraceTree::kDataArgument).
inline constexpr uint64_t kInjectedData = 0xDA7ADA7ADA7ADA7Aull;

struct ThreadCaptureInput {
  pid_t host_tid = 0;
  const ThreadImage* previous = nullptr;  // of the last epoch, if the thread was there
  bool slow_state = false;  // read what seldom changes too (name, scheduling, credentials ...)
  bool killed = false;      // stands at its exit stop, and was not to end
  Inject inject;
  bool kernel_reader = true;  // read hidden state from the kernel where that is allowed
};

// The thread must be in a ptrace stop of the calling tracer. nullopt: it is gone.
std::optional<ThreadImage> capture_thread(const ThreadCaptureInput& input);

struct ProcessCaptureInput {
  pid_t host_pid = 0;
  std::vector<pid_t> host_tids;  // leader first, all stopped
  const ProcessImage* previous = nullptr;
  bool slow_state = false;
  std::vector<pid_t> killed = {};  // of host_tids: those at their exit stops
  bool job_stopped = false;        // by job control, before it was killed
  bool continued = false;          // by job control, and its parent does not know yet
  Inject inject;
  bool kernel_reader = true;
};

// Everything of ProcessImage except mappings, parent and file_table, which the caller fills.
// nullopt: it, or one of its threads, is gone. Throws SysError; EBUSY where it was killed within an
// execve(2) that had taken its old program away already: what there is of the new one cannot run.
std::optional<ProcessImage> capture_process(const ProcessCaptureInput& input);

// What of a process cannot be replicated, except mappings and descriptors: seccomp filters,
// namespaces other than those a keeper can enter or make (mount, net, ipc, uts, cgroup, time; pid
// is our own business; user is refused), 32-bit mode, shadow stacks, AIO contexts, io_uring
// registrations, tracing by others, setuid states we cannot restore.
//
// kLater leaves out what the replica has already, such as the executable, and what costs more than
// some 20 us a thread.
enum class RefusalScope : uint8_t { kFirst, kLater };
void find_process_refusals(pid_t host_pid, Refusals& refusals,
                           RefusalScope scope = RefusalScope::kFirst);

// A process that lives by other clocks than the group's root.
void find_clock_refusals(pid_t root, pid_t host_pid, Refusals& refusals);

// A process whose main thread has ended while others run on: hardly anything of it can be read by
// its pid, and a process of that kind is not rebuilt.
Refusal no_main_thread(pid_t host_pid);

// Pid in the innermost PID namespace of the process (last of NSpid), nullopt when gone.
std::optional<int32_t> pid_in_namespace(pid_t host_pid);

}  // namespace replpage
