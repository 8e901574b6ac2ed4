#include "core/restore/remote_thread.h"

#include <signal.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "core/base/sys_error.h"
#include "core/restore/wait_limit.h"

namespace replpage {
namespace {

constexpr uint64_t kErrorFirst = static_cast<uint64_t>(-4095);  // IS_ERR_VALUE of linux/err.h

bool is_error(long result) { return static_cast<uint64_t>(result) >= kErrorFirst; }

bool is_fatal(int signal) {
  return signal == SIGSEGV || signal == SIGILL || signal == SIGBUS || signal == SIGFPE ||
         signal == SIGSYS;
}

}  // namespace

RemoteThread::RemoteThread(pid_t tid) : tid_(tid) {
  if (::ptrace(PTRACE_GETREGS, tid, nullptr, &registers_) != 0) {
    throw SysError::from_errno("read registers", on_pid(tid));
  }
  registers_.fs_base = registers_.gs_base = 0;
}

RemoteThread RemoteThread::seize(pid_t tid) {
  if (::ptrace(PTRACE_SEIZE, tid, nullptr, PTRACE_O_EXITKILL) != 0) {
    throw SysError::from_errno("seize", on_pid(tid));
  }
  if (::ptrace(PTRACE_INTERRUPT, tid, nullptr, nullptr) != 0) {
    throw SysError::from_errno("interrupt", on_pid(tid));
  }
  return adopt(tid);
}

RemoteThread RemoteThread::adopt(pid_t tid) {
  const int status = wait_for_tracee(tid, "wait for the first stop");
  if (!WIFSTOPPED(status)) throw SysError("wait for the first stop", ESRCH, on_pid(tid));
  return RemoteThread(tid);
}

void RemoteThread::set_registers(const user_regs_struct& registers) {
  if (::ptrace(PTRACE_SETREGS, tid_, nullptr, &registers) != 0) {
    throw SysError::from_errno("set registers", on_pid(tid_));
  }
}

void RemoteThread::resume(int request) {
  if (::ptrace(static_cast<__ptrace_request>(request), tid_, nullptr, nullptr) != 0) {
    throw SysError::from_errno("continue", on_pid(tid_));
  }
}

void RemoteThread::wait_breakpoint(const Stub& stub, const StubSlot& slot, const char* label) {
  for (;;) {
    const int status = wait_for_tracee(tid_, label);
    if (!WIFSTOPPED(status)) throw SysError(label, ESRCH, on_pid(tid_));
    if (stub.done(slot)) return;
    // Signals stay blocked here, so what else stops the thread is a SIGSTOP from outside, dropped,
    // or a fault of the stub itself.
    if (is_fatal(WSTOPSIG(status)) && status >> 16 == 0) {
      throw SysError(label, EFAULT, on_pid(tid_));
    }
    resume(PTRACE_CONT);
  }
}

void RemoteThread::start_chunk(Stub& stub, const SyscallBatch& batch, const StubSlot& slot,
                               const BatchResult& so_far) {
  const size_t first = so_far.results.size();
  const size_t count = stub.load_operations(batch, first, so_far.results, slot);
  set_registers(stub.entry(registers_, slot, count));
  resume(PTRACE_CONT);
}

void RemoteThread::finish_chunk(Stub& stub, const SyscallBatch& batch, const StubSlot& slot,
                                BatchResult& result) {
  const auto& operations = batch.operations();
  const size_t first = result.results.size();
  wait_breakpoint(stub, slot, operations[first].label);
  for (size_t index = 0; index < stub.executed(slot); ++index) {
    const long value = stub.result(slot, index);
    result.results.push_back(value);
    const BatchOperation& operation = operations[first + index];
    if (is_error(value) && operation.must_succeed) {
      throw SysError(operation.label, static_cast<int>(-value), on_pid(tid_));
    }
  }
}

BatchResult RemoteThread::run(Stub& stub, const SyscallBatch& batch) {
  const StubSlot whole;
  stub.load_data(batch, whole);
  BatchResult result;
  result.results.reserve(batch.operations().size());
  while (result.results.size() < batch.operations().size()) {
    start_chunk(stub, batch, whole, result);
    finish_chunk(stub, batch, whole, result);
  }
  const auto data = stub.data(whole, batch.data().size());
  result.data.assign(data.begin(), data.end());
  return result;
}

void RemoteThread::start(Stub& stub, const SyscallBatch& batch, const StubSlot& slot) {
  if (batch.operations().size() > slot.operations) {
    throw SysError("start a batch", E2BIG, on_pid(tid_));
  }
  stub.load_data(batch, slot);
  start_chunk(stub, batch, slot, {});
}

BatchResult RemoteThread::finish(Stub& stub, const SyscallBatch& batch, const StubSlot& slot) {
  BatchResult result;
  finish_chunk(stub, batch, slot, result);
  const auto data = stub.data(slot, batch.data().size());
  result.data.assign(data.begin(), data.end());
  return result;
}

bool RemoteThread::finished(const Stub& stub) const {
  int status = 0;
  const pid_t got = ::waitpid(tid_, &status, __WALL | WNOHANG);
  if (got < 0 || (got == tid_ && !WIFSTOPPED(status))) {
    throw SysError("wait for a batch", ESRCH, on_pid(tid_));
  }
  if (!stub.done({})) {
    if (got == tid_) ::ptrace(PTRACE_CONT, tid_, nullptr, nullptr);  // a SIGSTOP from outside
    return false;
  }
  user_regs_struct registers{};
  return ::ptrace(PTRACE_GETREGS, tid_, nullptr, &registers) == 0;
}

int RemoteThread::run_to_end(Stub& stub, const SyscallBatch& batch) {
  const StubSlot whole;
  stub.load_data(batch, whole);
  set_registers(stub.entry(registers_, whole, stub.load_operations(batch, 0, {}, whole)));
  int deliver = 0;
  for (;;) {
    if (::ptrace(PTRACE_CONT, tid_, nullptr, static_cast<uintptr_t>(deliver)) != 0) {
      throw SysError::from_errno("continue", on_pid(tid_));
    }
    const int status = wait_for_tracee(tid_, "wait for the end");
    if (!WIFSTOPPED(status)) return status;
    if (stub.done(whole)) throw SysError("end a thread", EBUSY, on_pid(tid_));
    deliver = status >> 16 == 0 ? WSTOPSIG(status) : 0;
  }
}

user_regs_struct RemoteThread::call_registers(uint64_t instruction, long number,
                                              const std::array<uint64_t, 6>& arguments) const {
  user_regs_struct registers = plain_entry(registers_);
  registers.rip = instruction;
  registers.rax = static_cast<uint64_t>(number);
  registers.rdi = arguments[0];
  registers.rsi = arguments[1];
  registers.rdx = arguments[2];
  registers.r10 = arguments[3];
  registers.r8 = arguments[4];
  registers.r9 = arguments[5];
  return registers;
}

void RemoteThread::leave(uint64_t instruction, long number) {
  set_registers(call_registers(instruction, number, {}));
  if (::ptrace(PTRACE_CONT, tid_, nullptr, nullptr) == 0) wait_end();
}

long RemoteThread::step(uint64_t instruction, long number,
                        const std::array<uint64_t, 6>& arguments) {
  start_step(instruction, number, arguments);
  return finish_step(instruction);
}

void RemoteThread::start_step(uint64_t instruction, long number,
                              const std::array<uint64_t, 6>& arguments) {
  set_registers(call_registers(instruction, number, arguments));
  resume(PTRACE_SINGLESTEP);
}

long RemoteThread::finish_step(uint64_t instruction) {
  for (;;) {
    const int status = wait_for_tracee(tid_, "step");
    if (!WIFSTOPPED(status)) throw SysError("step", ESRCH, on_pid(tid_));
    if (is_fatal(WSTOPSIG(status)) && status >> 16 == 0) {
      throw SysError("step", EFAULT, on_pid(tid_));
    }
    user_regs_struct registers{};
    if (::ptrace(PTRACE_GETREGS, tid_, nullptr, &registers) != 0) {
      throw SysError::from_errno("read registers", on_pid(tid_));
    }
    if (registers.rip != instruction) return static_cast<long>(registers.rax);
    resume(PTRACE_SINGLESTEP);
  }
}

bool RemoteThread::detach(int signal) {
  return ::ptrace(PTRACE_DETACH, tid_, nullptr, static_cast<uintptr_t>(signal)) == 0;
}

bool RemoteThread::detach(const SignalInfo& info) {
  SignalInfo copy = info;
  const bool set = ::ptrace(PTRACE_SETSIGINFO, tid_, nullptr, copy.data()) == 0;
  return detach(set ? signal_of(info) : 0);
}

int RemoteThread::wait_end() {
  for (;;) {
    const int status = wait_for_tracee(tid_, "wait for the end");
    if (!WIFSTOPPED(status)) return status;
    ::ptrace(PTRACE_CONT, tid_, nullptr, nullptr);
  }
}

}  // namespace replpage
