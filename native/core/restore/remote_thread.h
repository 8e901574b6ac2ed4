// One thread of a replica, traced by the keeper and stopped whenever no batch runs in it.
//
// All functions must be called from the thread that attached: ptrace(2). Those that wait throw
// SysError(ETIMEDOUT) when that thread has a WaitLimit and it has passed.
#pragma once

#include <sys/types.h>
#include <sys/user.h>

#include <array>
#include <cstdint>
#include <optional>

#include "core/image/thread_image.h"
#include "core/restore/stub.h"
#include "core/restore/syscall_batch.h"

namespace replpage {

class RemoteThread {
 public:
  // A child of the caller, running: attaches to it and stops it. It dies with the tracer.
  static RemoteThread seize(pid_t tid);
  // A thread or process that a traced thread made with CLONE_PTRACE: waits for its first stop.
  static RemoteThread adopt(pid_t tid);

  [[nodiscard]] pid_t tid() const { return tid_; }

  // Executes the batch and waits for its end. Throws SysError with the label, pid and errno of the
  // first operation that had to succeed and did not, SysError(ESRCH) when the thread dies.
  BatchResult run(Stub& stub, const SyscallBatch& batch);

  // The same in two steps, so that several threads run at once, or one blocks for long. The batch
  // has to fit into the slot.
  void start(Stub& stub, const SyscallBatch& batch, const StubSlot& slot = {});
  BatchResult finish(Stub& stub, const SyscallBatch& batch, const StubSlot& slot);
  // Whether the batch that was started is done and the thread stopped again. Works whoever waited
  // for that stop. Throws SysError(ESRCH) when the thread is gone.
  [[nodiscard]] bool finished(const Stub& stub) const;

  // Executes the batch, which makes the thread leave (exit, exit_group or a fatal signal), and
  // reaps it. Returns its wait status.
  int run_to_end(Stub& stub, const SyscallBatch& batch);

  // Executes one system call with the `syscall` instruction at `instruction` (in code that stays)
  // and stops right behind it. Returns its result.
  long step(uint64_t instruction, long number, const std::array<uint64_t, 6>& arguments);
  void start_step(uint64_t instruction, long number, const std::array<uint64_t, 6>& arguments);
  long finish_step(uint64_t instruction);

  // Executes one system call, as step() does, that ends the thread, and reaps it.
  void leave(uint64_t instruction, long number);

  // Lets go: the thread runs with the registers it has, or gets `signal` first. False: it is gone.
  bool detach(int signal = 0);
  // The same with what the signal carries. The thread must be in a signal-delivery-stop. A signal
  // that it blocks becomes pending.
  bool detach(const SignalInfo& info);

  // Waits until the thread is gone and returns its wait status.
  int wait_end();

 private:
  explicit RemoteThread(pid_t tid);
  [[nodiscard]] user_regs_struct call_registers(uint64_t instruction, long number,
                                                const std::array<uint64_t, 6>& arguments) const;
  void set_registers(const user_regs_struct& registers);
  void start_chunk(Stub& stub, const SyscallBatch& batch, const StubSlot& slot,
                   const BatchResult& so_far);
  // Waits for the stub's breakpoint and takes the results.
  void finish_chunk(Stub& stub, const SyscallBatch& batch, const StubSlot& slot,
                    BatchResult& result);
  void wait_breakpoint(const Stub& stub, const StubSlot& slot, const char* label);
  void resume(int request);

  pid_t tid_ = 0;
  user_regs_struct registers_{};  // of the first stop: a base for those of the stub
};

}  // namespace replpage
