// One process of a replica: its threads, parked in the stub, and its address space.
#pragma once

#include <map>
#include <memory>
#include <vector>

#include "core/image/group_image.h"
#include "core/restore/address_space.h"
#include "core/restore/remote_thread.h"
#include "core/restore/replica.h"
#include "core/restore/stub.h"

namespace replpage {

// How a process comes into being in its cloner's batch.
struct CloneRequest {
  pid_t pid = 0;
  uint64_t flags = 0;  // CLONE_* besides CLONE_PTRACE
  int exit_signal = 0;
};

// Appends a clone3 with the number wanted; the child stops before its first instruction.
void add_clone(const CloneRequest& request, SyscallBatch& batch);

class StubProcess final : public ReplicaProcess {
 public:
  // A child of the keeper with this pid. Throws SysError (EEXIST: the number is taken).
  static std::unique_ptr<StubProcess> spawn(pid_t pid);
  // A process cloned by this one, with nothing mapped but its stub and the vdso. With CLONE_PARENT
  // it becomes a sibling.
  std::unique_ptr<StubProcess> clone(const CloneRequest& request);

  [[nodiscard]] int32_t pid() const override { return pid_; }
  BatchResult run(const SyscallBatch& batch, int32_t tid = 0) override;
  std::vector<int> receive(std::span<const int> descriptors, int lowest) override;

  // Starts a batch in a thread and returns at once, where there is room in the stub; complete()
  // waits for all that were started, and runs what had no room; it throws the first failure when
  // none runs any more. Only complete() may follow.
  void begin(int32_t tid, SyscallBatch batch);
  void complete();

  // Makes the descriptor table as large as promotion will need it. Once threads share the table,
  // the kernel waits for all CPUs to let go of the smaller one (5-20 ms, expand_fdtable in
  // fs/file.c).
  void make_descriptor_room(size_t descriptors);
  // The process has got a table of its own, as small as can be.
  void forget_descriptor_room() { descriptor_room_ = 0; }

  // Ends and creates threads until they are those of the image.
  void shape_threads(const ProcessImage& image);
  void shape_memory(const ProcessImage& image, const MappedSources& sources);

  // Ends the process by the batch, which its leader executes last, and reaps it as its tracer.
  int end(const SyscallBatch& last);
  // SIGKILL, and reaped as its tracer. Works in any state.
  void kill();

  [[nodiscard]] AddressSpace& memory() { return memory_; }
  [[nodiscard]] Stub& stub() { return *stub_; }
  [[nodiscard]] PageRange stub_range() const;
  [[nodiscard]] std::map<int32_t, RemoteThread>& threads() { return threads_; }
  [[nodiscard]] RemoteThread& leader() { return threads_.at(pid_); }

  // /proc/PID/mem, for what process_vm_writev(2) may not write.
  int memory_file();
  [[nodiscard]] uint64_t resident_bytes() const;

 private:
  StubProcess(pid_t pid, std::unique_ptr<Stub> stub, RemoteThread leader,
              std::vector<MappingImage> special);
  void leave_keeper_memory();
  void leave_parent_stub(Stub& parent);
  void move_stub(uint64_t address);

  struct Started {
    int32_t tid = 0;
    SyscallBatch batch;
    StubSlot slot;
    bool waiting = false;  // had no room
  };

  pid_t pid_;
  std::vector<Started> started_;
  std::unique_ptr<Stub> stub_;
  Stub* running_;  // the stub the threads are in: the parent's, at first
  std::map<int32_t, RemoteThread> threads_;
  AddressSpace memory_;
  UniqueFd memory_file_;
  size_t descriptor_room_ = 0;
};

}  // namespace replpage
