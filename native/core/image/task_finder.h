// Where the kernel keeps the task_struct of a thread, found by a BPF iterator over that one task
// (Linux 6.1; kernel/bpf/task_iter.c). Some 20 us for one that is not known yet.
#pragma once

#include <cstdint>
#include <unordered_map>

#include "core/base/unique_fd.h"
#include "core/image/bpf.h"
#include "core/image/btf_types.h"

namespace replpage {

class TaskFinder {
 public:
  // Throws SysError when the kernel does not allow or know it.
  explicit TaskFinder(const BtfTypes& types);

  // Where it was found last, 0 when it was not looked for. The thread may have ended since.
  [[nodiscard]] uint64_t known(uint32_t tid) const;
  // Looks for it; 0: there is none. Throws SysError.
  uint64_t find(uint32_t tid);

 private:
  bpf::SharedArea found_;
  UniqueFd program_;
  std::unordered_map<uint32_t, uint64_t> known_;
};

}  // namespace replpage
