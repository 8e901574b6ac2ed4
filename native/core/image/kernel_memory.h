// Reads kernel memory through a small BPF program (bpf(2), BPF_PROG_TYPE_SYSCALL). The program
// reads only; it needs CAP_BPF and CAP_PERFMON, and is refused under kernel lockdown. Where it may
// not look tasks up (before Linux 6.10), an iterator does: see TaskFinder.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "core/base/unique_fd.h"
#include "core/image/bpf.h"
#include "core/image/btf_types.h"
#include "core/image/task_finder.h"

namespace replpage {

class KernelMemory {
 public:
  // Throws SysError when the kernel does not allow or know it.
  explicit KernelMemory(const BtfTypes& types);
  KernelMemory(const KernelMemory&) = delete;
  KernelMemory& operator=(const KernelMemory&) = delete;

  // Forgets all requests of the last run.
  void start();
  // Asks for `length` bytes at `address`; with a pid, at that offset of its task_struct. Returns
  // the number of the request. At most kRequestsMax requests of
  // kLengthMax bytes, and kResultBytes in all: throws SysError (E2BIG).
  size_t ask(uint64_t address, uint32_t length, uint32_t pid = 0);
  // Carries all requests out in one system call (about 1 us and 0.2 us a request).
  void run();
  // What a request read, empty when it could not: no such task, or not mapped.
  [[nodiscard]] std::span<const uint8_t> result(size_t request) const;
  // Address of the task_struct that a request with a pid found.
  [[nodiscard]] uint64_t task(size_t request) const;

  static constexpr size_t kRequestsMax = 64;
  static constexpr uint32_t kResultBytes = 1 << 18;  // a power of two: offsets are masked
  static constexpr uint32_t kLengthMax = 16376;

 private:
  struct Area;
  bool load_with_call(const BtfTypes& types);
  void load(std::span<const bpf::Instruction> find);
  void run_once();
  bool find_again();
  [[nodiscard]] Area& area() const { return *static_cast<Area*>(area_.data()); }

  bpf::SharedArea area_;
  UniqueFd program_;
  std::unique_ptr<TaskFinder> finder_;  // null: the program looks tasks up itself
  uint32_t used_ = 0;                   // bytes of the result area
};

}  // namespace replpage
