#include "core/restore/assistant.h"

#include <fcntl.h>
#include <linux/sched.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include <algorithm>
#include <csignal>

#include "core/base/proc_stat.h"
#include "core/base/procfs.h"
#include "core/base/sys_error.h"

namespace replpage {
namespace {

// Freed in one call, while the program's own mmap and munmap wait: 0.1 ms, or 4 ms where the host
// takes freed memory back.
constexpr uint64_t kChunkBytes = 2u << 20;
// And by one order, which the keeper waits for.
constexpr uint64_t kPartBytes = 16u << 20;

constexpr uint64_t kProcessFlags = CLONE_VM | CLONE_FILES | CLONE_PARENT;
constexpr uint64_t kThreadFlags =
    CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM;

}  // namespace

Assistant::Assistant(StubProcess& process, std::vector<PageRange> moved,
                     const std::vector<QueuedLock>& locks, bool child_of_keeper,
                     uint64_t instruction)
    : process_(process),
      moved_(std::move(moved)),
      instruction_(instruction),
      waits_(!locks.empty()) {
  SyscallBatch batch;
  const PageRange stub = process.stub_range();
  batch.add("madvise", SYS_madvise, {stub.start, stub.bytes(), MADV_DONTFORK});
  // A lock is said to belong to the process of whoever took it: F_GETLK must tell the program's
  // pid.
  process_of_its_own_ = child_of_keeper && !waits_;
  add_clone({.pid = 0, .flags = process_of_its_own_ ? kProcessFlags : kThreadFlags}, batch);
  const BatchResult result = process.run(batch);
  task_ = RemoteThread::adopt(static_cast<pid_t>(result.results[1]));
  if (!waits_) return;
  SyscallBatch waits;
  for (const QueuedLock& queued : locks) {
    const uint64_t at = waits.put_value(lock_range(queued.lock));
    waits.add("wait for a lock", SYS_fcntl, {queued.fd, F_SETLKW, BatchArgument::data(at)}, false);
  }
  task_->start(process_.stub(), waits);
}

bool Assistant::ready() {
  if (!waits_) return true;
  try {
    return task_->finished(process_.stub());
  } catch (const SysError&) {
    return true;
  }
}

// A process whose first thread has ended lives on as long as it has others. One of those would take
// the process with it, and ends with it.
bool Assistant::is_orphan() const {
  if (!process_of_its_own_) return false;
  const auto stat = ProcStat::of(process_.pid());
  if (stat && !stat->is_dead()) return false;
  const auto threads = numeric_entries("/proc/" + std::to_string(process_.pid()) + "/task");
  return !threads || threads->size() <= 1;
}

void Assistant::kill() { (void)::kill(task_->tid(), SIGKILL); }

bool Assistant::free_some(uint64_t& freed) {
  waits_ = false;
  try {
    if (!moved_.empty()) {
      PageRange& range = moved_.back();
      SyscallBatch batch;
      const uint64_t end = std::min(range.end, range.start + kPartBytes);
      for (uint64_t at = range.start; at < end; at += kChunkBytes) {
        batch.add("free moved memory", SYS_munmap, {at, std::min(kChunkBytes, end - at)}, false);
      }
      task_->run(process_.stub(), batch);
      freed += end - range.start;
      range.start = end;
      if (range.start == range.end) moved_.pop_back();
      if (!moved_.empty()) return false;
    }
    const PageRange stub = process_.stub_range();
    task_->step(instruction_, SYS_munmap, {stub.start, stub.bytes()});
    task_->leave(instruction_, SYS_exit);
  } catch (const SysError&) {
    // The program ended, or executed another, in the meantime: there is nothing left to free.
    if (process_of_its_own_) kill();
  }
  return true;
}

}  // namespace replpage
