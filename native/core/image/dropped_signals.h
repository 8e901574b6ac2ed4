// Signals that the kernel drops because the process they were for is dying.
//
// From the moment of a SIGKILL on, whatever is sent to a process is dropped without an error
// (prepare_signal in kernel/signal.c): what a thread that has not noticed yet queues for its own
// group, and also a signal that a thread stood at a ptrace stop with (ptrace_signal gives it back,
// and it is dropped then). The program believes it sent, so its replica has to get it.
//
// A small BPF program at the tracepoint signal_generate notes them in a ring. It looks closer at
// dropped signals only (about 50 ns a signal of the machine).
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <vector>

#include "core/base/unique_fd.h"
#include "core/image/bpf.h"
#include "core/image/btf_types.h"
#include "core/image/process_image.h"

namespace replpage {

class DroppedSignals {
 public:
  // Begins to watch. Throws SysError when the kernel does not allow or know it.
  explicit DroppedSignals(const BtfTypes& types);

  // Adds what was dropped for a process since `since_ns` (CLOCK_MONOTONIC) to the queues of its
  // image, where it would stand had it not been dropped. Every thread stands at its exit stop. The
  // ring keeps the last 1024 signals of the machine's dying processes.
  void restore(pid_t host_pid, uint64_t since_ns, ProcessImage& image) const;

 private:
  struct Entry;
  struct Ring;
  [[nodiscard]] std::vector<Entry> entries_of(pid_t host_pid, uint64_t since_ns) const;

  bpf::SharedArea area_;
  UniqueFd program_, attached_;
};

}  // namespace replpage
