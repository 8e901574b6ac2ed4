// A small stopped process to capture descriptors from, and another one to restore them into.
#pragma once

#include <sys/types.h>

#include <functional>
#include <memory>
#include <vector>

#include "core/image/descriptor_capture.h"
#include "core/restore/replica.h"

namespace replpage::testing {

// Forked child that executes system calls on request. It shares a page range with the test and
// uses no descriptor, so that every number is free.
class CallProcess final : public ReplicaProcess {
 public:
  // `prepare` runs in the child first; it may open what it likes.
  explicit CallProcess(const std::function<void()>& prepare = {});
  ~CallProcess() override;
  CallProcess(const CallProcess&) = delete;
  CallProcess& operator=(const CallProcess&) = delete;

  [[nodiscard]] int32_t pid() const override { return pid_; }
  BatchResult run(const SyscallBatch& batch, int32_t tid = 0) override;
  std::vector<int> receive(std::span<const int> descriptors, int lowest) override;

  // One system call with plain arguments; -errno on failure.
  long call(long number, std::array<BatchArgument, 6> arguments = {});
  // A duplicate of one of its descriptors.
  [[nodiscard]] UniqueFd descriptor(int fd) const;
  [[nodiscard]] std::string link(int fd) const;
  [[nodiscard]] std::string info(int fd) const;
  void kill();

 private:
  struct Area;
  Area* area_ = nullptr;
  pid_t pid_ = 0;
};

// Captures processes as a group whose pids are those of `replicas`.
struct Captured {
  GroupImage image;
  Refusals refusals;
  DescriptorCaptureInput input;
};
Captured capture_group(DescriptorCapture& capture, const std::vector<pid_t>& primaries,
                       const std::vector<pid_t>& replicas, bool with_content = true);

}  // namespace replpage::testing
