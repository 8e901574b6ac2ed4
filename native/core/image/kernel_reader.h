// Hidden state read from the kernel's own structures: exact, and without the process noticing.
#pragma once

#include <sys/types.h>

#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/image/dropped_signals.h"
#include "core/image/kernel_mappings.h"
#include "core/image/kernel_memory.h"
#include "core/image/process_image.h"

namespace replpage {

struct KernelOffsets;

class KernelReader {
 public:
  // The daemon's reader, made at the first call (about 100 ms), so before anything is frozen. Null
  // where the kernel does not allow or know it: no BTF, no BPF iterators, lockdown, a PID
  // namespace of our own, REPLPAGE_KERNEL_READER=off in the environment ("iterator": as on old
  // kernels). Any thread.
  static KernelReader* instance();
  // Why there is none; empty where there is one.
  static const std::string& why_not();
  ~KernelReader();

  // Alternate stack, tid address, parent-death signal, securebits and name of a stopped thread, and
  // a mark that differs when its credentials, scheduling or affinity changed.
  // False when it is gone.
  bool read_thread(pid_t host_tid, ThreadImage& image);

  // Signal actions, interval timers, layout with the break (without the auxiliary vector), limits,
  // umask, dumpable, subreaper, membarrier, mlockall and oom_score_adj, and a mark that differs
  // when directories, executable, process group, session or personality changed. False: gone.
  bool read_process(pid_t host_pid, ProcessImage& image);

  // Numbers, clocks and values of the POSIX timers, ascending. nullopt when the process is gone.
  std::optional<std::vector<PosixTimer>> read_posix_timers(pid_t host_pid);

  // Flags of all mappings of a stopped process, ascending. nullopt when it is gone, or when this
  // kernel does not let us know: /proc/PID/smaps tells as well, but walks the page tables.
  std::optional<std::vector<VmBits>> read_mappings(pid_t host_pid);

  // Whether operations of SysV semaphores are to be undone when the process ends (SEM_UNDO of
  // semop(2)). Any thread shares the list, so having one tells nothing yet. False when it is gone.
  bool has_semaphore_undos(pid_t host_pid);

  // Signals that were dropped because their process was dying; null where the kernel does not let
  // us see them. Needs less of the kernel than a reader: Debian's 6.1 and 6.12 have it too. Made
  // together with the reader.
  static const DroppedSignals* dropped_signals();

 private:
  struct Pointers {
    uint64_t memory = 0, directories = 0, signals = 0, actions = 0;
    uint32_t personality = 0;
  };
  struct Made;
  static const Made& made();
  explicit KernelReader(const BtfTypes& types);
  bool finds_own_task();
  void find_mappings(const BtfTypes& types);
  std::optional<Pointers> read_pointers(pid_t host_pid);
  std::optional<uint64_t> read_pointer(uint64_t address);
  std::optional<PosixTimer> read_posix_timer(pid_t host_pid, uint64_t address);

  std::mutex mutex_;
  std::unique_ptr<const KernelOffsets> at_;
  KernelMemory memory_;
  std::unique_ptr<const KernelMappings> mappings_;  // null where they cannot be read
};

}  // namespace replpage
