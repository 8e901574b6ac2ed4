// A task that shares a promoted process's memory and frees what was moved away, while the process
// runs: a process of its own where the keeper is its parent, else a thread, since a child would
// have to be reaped by the program.
#pragma once

#include <optional>
#include <vector>

#include "core/base/page.h"
#include "core/restore/stub_process.h"

namespace replpage {

class Assistant {
 public:
  // Creates it, parked in the stub of `process`, with the credentials that its leader has by now.
  // Call with the leader stopped in the stub. The stub then stays until finish().
  // `instruction`: a `syscall` in the process's code, for what must be done without the stub.
  Assistant(StubProcess& process, std::vector<PageRange> moved, bool child_of_keeper,
            uint64_t instruction);

  // Frees everything, the stub last, and ends. Returns the bytes freed. The process may be gone.
  uint64_t finish();

 private:
  StubProcess& process_;
  std::vector<PageRange> moved_;
  uint64_t instruction_;
  std::optional<RemoteThread> task_;
};

}  // namespace replpage
