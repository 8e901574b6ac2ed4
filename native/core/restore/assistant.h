// A task that shares a promoted process's memory and descriptors. While the process runs, it waits
// for POSIX locks that the dying process still holds, ahead of later competitors, and frees what
// was moved away. It is a process of its own where the keeper is its parent and no lock is to be
// had, else a thread, since a child would have to be reaped by the program.
#pragma once

#include <optional>
#include <vector>

#include "core/base/page.h"
#include "core/restore/descriptors.h"
#include "core/restore/stub_process.h"

namespace replpage {

class Assistant {
 public:
  // Creates it, parked in the stub of `process`, with the credentials that its leader has by now.
  // Call with the leader stopped in the stub. The stub then stays until all is freed.
  // `instruction`: a `syscall` in the process's code, for what must be done without the stub.
  // It waits for `locks` from now on.
  Assistant(StubProcess& process, std::vector<PageRange> moved,
            const std::vector<QueuedLock>& locks, bool child_of_keeper, uint64_t instruction);

  [[nodiscard]] pid_t tid() const { return task_->tid(); }

  [[nodiscard]] bool waits() const { return waits_; }

  // Whether all locks are had, so that free_some() can be called, or the process is gone.
  [[nodiscard]] bool ready();

  // Whether free_some() is to be called once more, without anything that tells.
  [[nodiscard]] bool has_more() const { return !waits_; }
  // Frees a part, the stub last, and ends then: true. Adds the bytes to `freed`.
  bool free_some(uint64_t& freed);

  // It is left over: the program has ended. It shares the descriptors, and would keep ports and
  // locks.
  [[nodiscard]] bool is_orphan() const;
  void kill();

 private:
  StubProcess& process_;
  std::vector<PageRange> moved_;
  uint64_t instruction_;
  bool waits_ = false;
  bool process_of_its_own_ = false;
  std::optional<RemoteThread> task_;
};

}  // namespace replpage
