#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "core/base/procfs.h"
#include "core/base/restartable_sequence.h"
#include "core/base/sys_error.h"
#include "core/image/injected_state.h"
#include "core/image/interrupted_call.h"
#include "core/image/kernel_reader.h"
#include "core/image/process_capture.h"
#include "core/image/ptrace_state.h"
#include "core/image/scheduling_attributes.h"
#include "core/image/task_status.h"

namespace replpage {
namespace {

constexpr int kIoprioWhoProcess = 1;     // IOPRIO_WHO_PROCESS of ioprio_get(2)
constexpr size_t kAffinityBytes = 1024;  // 8192 CPUs, the most that x86-64 can be built for

std::string proc_path(pid_t tid, const char* file) { return "/proc/" + std::to_string(tid) + file; }

bool gone(const char* operation, pid_t tid) {
  if (errno == ESRCH) return true;
  throw SysError::from_errno(operation, on_pid(tid));
}

bool read_scheduling(pid_t tid, Scheduling& scheduling) {
  SchedulingAttributes attributes;
  if (::syscall(SYS_sched_getattr, tid, &attributes, sizeof attributes, 0) != 0) {
    return !gone("sched_getattr", tid);
  }
  // sched_getattr tells it with the ordinary policies only. The system call gives 20 - nice.
  const long priority = ::syscall(SYS_getpriority, PRIO_PROCESS, tid);
  if (priority < 0) return !gone("getpriority", tid);
  uint8_t affinity[kAffinityBytes];
  const long size = ::syscall(SYS_sched_getaffinity, tid, sizeof affinity, affinity);
  if (size < 0) return !gone("sched_getaffinity", tid);
  const auto slack = read_proc(proc_path(tid, "/timerslack_ns"));
  if (!slack) return false;
  scheduling = {.policy = attributes.policy,
                .flags = attributes.flags,
                .nice = static_cast<int32_t>(20 - priority),
                .priority = attributes.priority,
                .runtime_ns = attributes.runtime_ns,
                .deadline_ns = attributes.deadline_ns,
                .period_ns = attributes.period_ns,
                .io_priority = scheduling.io_priority,
                .timer_slack_ns = std::strtoull(slack->c_str(), nullptr, 10),
                .affinity = Bytes(affinity, affinity + size)};
  return true;
}

// Nothing tells that it has changed.
bool read_io_priority(pid_t tid, Scheduling& scheduling) {
  const long io_priority = ::syscall(SYS_ioprio_get, kIoprioWhoProcess, tid);
  if (io_priority < 0) return !gone("ioprio_get", tid);
  scheduling.io_priority = static_cast<int32_t>(io_priority);
  return true;
}

bool read_name(pid_t tid, std::string& name) {
  auto text = read_proc(proc_path(tid, "/comm"));
  if (!text) return false;
  if (text->ends_with('\n')) text->pop_back();
  name = std::move(*text);
  return true;
}

bool read_slow_state(pid_t tid, ThreadImage& image) {
  auto status = read_task_status(tid);
  if (!status) return false;
  status->credentials.securebits = image.credentials.securebits;
  image.credentials = std::move(status->credentials);
  return read_name(tid, image.name) && read_scheduling(tid, image.scheduling);
}

// glibc and bionic clear the thread's own id, which lies right before the robust list in their
// thread descriptor. Believed only where the thread's id is really found there.
uint64_t find_tid_address(pid_t host_tid, const ThreadImage& image) {
  constexpr uint64_t kDistance = 16;
  if (image.robust_list < kDistance) return 0;
  int32_t found = 0;
  const iovec local{&found, sizeof found};
  const iovec remote{reinterpret_cast<void*>(image.robust_list - kDistance),  // NOLINT: tracee's
                     sizeof found};
  const ssize_t got = ::process_vm_readv(host_tid, &local, 1, &remote, 1, 0);
  return got == sizeof found && found == image.tid ? image.robust_list - kDistance : 0;
}

bool read_hidden_state(const ThreadCaptureInput& input, ThreadImage& image) {
  if (KernelReader* const reader = input.kernel_reader ? KernelReader::instance() : nullptr) {
    return reader->read_thread(input.host_tid, image);
  }
  if (input.previous != nullptr && !input.slow_state) return true;
  if (!input.inject) {
    if (input.previous == nullptr) image.clear_child_tid = find_tid_address(input.host_tid, image);
    return true;
  }
  const auto state = inject_thread_state(input.host_tid, input.inject);
  if (!state) return false;
  image.altstack = state->altstack;
  image.clear_child_tid = state->clear_child_tid;
  image.parent_death_signal = state->parent_death_signal;
  image.credentials.securebits = state->securebits;
  return true;
}

// The program may make no system call in a sequence.
void abort_sequence(pid_t host_tid, ThreadImage& image) {
  user_regs_struct& registers = image.registers;
  if (image.rseq.pointer == 0 || static_cast<int64_t>(registers.orig_rax) >= 0) return;
  const auto abort = abort_of_sequence(host_tid, image.rseq.pointer, registers.rip);
  if (abort) registers.rip = *abort;
}

}  // namespace

std::optional<ThreadImage> capture_thread(const ThreadCaptureInput& input) {
  ThreadImage image;
  if (input.previous != nullptr) {
    image = *input.previous;
  } else {
    const auto tid = pid_in_namespace(input.host_tid);
    if (!tid) return std::nullopt;
    image.tid = *tid;
    image.host_tid = input.host_tid;
  }
  if (!read_thread_registers(input.host_tid, image)) return std::nullopt;
  const auto cause = read_stop_cause(input.host_tid);
  auto pending = read_pending(input.host_tid, SignalQueue::kThread);
  if (!cause || !pending) return std::nullopt;
  if (cause->delivery) pending->insert(pending->begin(), *cause->delivery);
  image.pending = std::move(*pending);
  if (!read_hidden_state(input, image)) return std::nullopt;
  const bool slow = input.slow_state || input.previous == nullptr ||
                    image.change_mark != input.previous->change_mark;
  if (slow && !read_slow_state(input.host_tid, image)) return std::nullopt;
  if (!read_io_priority(input.host_tid, image.scheduling)) return std::nullopt;
  settle_interrupted_call(input.host_tid, input.previous, image);
  if (input.killed) settle_killed_call(image);
  abort_sequence(input.host_tid, image);
  return image;
}

std::optional<int32_t> pid_in_namespace(pid_t host_pid) {
  const auto status = read_task_status(host_pid);
  if (!status) return std::nullopt;
  return status->thread_ids.back();
}

}  // namespace replpage
