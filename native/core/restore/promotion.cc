#include "core/restore/promotion.h"

#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include <ctime>

#include "core/base/clock.h"
#include "core/base/sys_error.h"
#include "core/base/urgency.h"
#include "core/restore/process_state.h"

namespace replpage {
namespace {

// Signals that building has left pending in a process: SIGCHLD of ended children, SIGHUP and
// SIGCONT of orphaned process groups. Each is pending once at most.
constexpr int kLeftoverSignals = 3;

void add_signal_flush(SyscallBatch& batch) {
  const uint64_t all = batch.put_value(~uint64_t{0});
  const uint64_t at_once = batch.put_value(timespec{});
  for (int i = 0; i < kLeftoverSignals; ++i) {
    batch.add("discard signals", SYS_rt_sigtimedwait,
              {BatchArgument::data(all), 0, BatchArgument::data(at_once), 8}, false);
  }
}

// A `syscall` instruction in code that stays when the stub goes.
uint64_t find_syscall_instruction(StubProcess& process) {
  if (const uint64_t in_vdso = process.memory().syscall_instruction(); in_vdso != 0) return in_vdso;
  constexpr size_t kChunk = 64 * 1024;
  std::vector<uint8_t> code(kChunk);
  for (const auto& region : process.memory().regions()) {
    if ((region.image.prot & PROT_EXEC) == 0) continue;
    for (uint64_t at = region.image.start; at < region.image.end; at += kChunk) {
      const size_t want = std::min<uint64_t>(kChunk, region.image.end - at);
      const ssize_t got = ::pread(process.memory_file(), code.data(), want, static_cast<off_t>(at));
      for (ssize_t i = 0; i + 1 < got; ++i) {
        if (code[i] == 0x0F && code[i + 1] == 0x05) return at + static_cast<uint64_t>(i);
      }
    }
  }
  throw SysError("find a system call instruction", ENOTSUP, on_pid(process.pid()));
}

}  // namespace

PromotedReplica Promotion::run(PromoteInput input,
                               const std::function<void(PromotedReplica&)>& before_run) {
  const uint64_t started = now_us();
  const GroupImage& image = *input.image;
  if (!input.exact && !input.keep_files) check_files_unchanged(image);
  PromotedReplica promoted;
  promoted.root = image.processes.front().pid;
  give_memfds(input);
  prepare_lazy(input, promoted);
  if (before_run) before_run(promoted);

  std::vector<ReplicaProcess*> processes;
  for (StubProcess* process : tree_.processes()) processes.push_back(process);
  for (QueuedLock& queued : install_descriptors(input, processes)) {
    queued_[queued.pid].push_back(queued);
  }
  objects_.seal();
  hurry(image);
  restore_state(image);
  leave_stubs();
  let_go(image);
  promoted.ran_us = now_us();
  promoted.took_us = promoted.ran_us - started;
  return promoted;
}

// The replica maps the keeper's copy of a memfd, so its descriptors must lead there too, and not to
// what was handed over.
void Promotion::give_memfds(PromoteInput& input) {
  const auto& files = input.image->open_files;
  input.handed.resize(files.size());
  for (size_t i = 0; i < files.size(); ++i) {
    if (files[i].kind == OpenFileKind::kMemfd) input.handed[i] = objects_.reopen(files[i]);
  }
}

void Promotion::prepare_lazy(const PromoteInput& input, PromotedReplica& promoted) {
  std::map<int32_t, std::vector<PageRange>> by_pid;
  for (const LazyRange& range : input.lazy) by_pid[range.pid].push_back({range.start, range.end});
  for (auto& [pid, ranges] : by_pid) {
    StubProcess* process = tree_.find(pid);
    if (process == nullptr) throw SysError("serve memory later", ESRCH, on_pid(pid));
    LazyMemory lazy(*process);
    UniqueFd uffd = lazy.prepare(ranges);
    if (!lazy.moved().empty()) moved_[pid] = lazy.moved();
    promoted.lazy.push_back({pid, std::move(uffd), std::move(ranges)});
  }
}

// Until they are the program's, its threads run before others, as the keeper does.
void Promotion::hurry(const GroupImage& image) {
  scheduling_ = SetPolicy::kByItself;
  for (const ProcessImage& process : image.processes) {
    for (const ThreadImage& thread : process.threads) {
      if (!run_before_others(thread.tid)) return;
      scheduling_ = SetPolicy::kLater;
    }
  }
}

void Promotion::complete_all() {
  for (StubProcess* process : tree_.processes()) process->complete();
}

// All processes, and then all their threads, at the same time. The leaders come last: with their
// credentials goes the right to do the rest.
void Promotion::restore_state(const GroupImage& image) {
  for (const ProcessImage& process : image.processes) {
    SyscallBatch shared;
    add_signal_flush(shared);
    add_process_state(process, shared);
    tree_.at(process.pid).begin(process.pid, std::move(shared));
  }
  complete_all();
  for (const ProcessImage& process : image.processes) {
    for (const ThreadImage& thread : process.threads) {
      if (thread.tid == process.pid) continue;
      SyscallBatch batch;
      add_thread_state(process, thread, scheduling_, batch);
      tree_.at(process.pid).begin(thread.tid, std::move(batch));
    }
  }
  complete_all();
  for (const ProcessImage& process : image.processes) {
    SyscallBatch last;
    for (const ThreadImage& thread : process.threads) {
      if (thread.tid == process.pid) add_thread_state(process, thread, scheduling_, last);
    }
    add_final_state(process, last);
    tree_.at(process.pid).begin(process.pid, std::move(last));
  }
  for (const ProcessImage& process : image.processes) apply_oom_score(process.pid, process);
  complete_all();
}

void Promotion::leave_stubs() {
  std::vector<std::pair<StubProcess*, uint64_t>> leaving;
  for (StubProcess* process : tree_.processes()) {
    const uint64_t instruction = find_syscall_instruction(*process);
    auto& moved = moved_[process->pid()];
    const auto& queued = queued_[process->pid()];
    if (!moved.empty() || !queued.empty()) {
      const bool child = tree_.is_child_of_keeper(process->pid());
      assistants_.push_back(
          std::make_unique<Assistant>(*process, std::move(moved), queued, child, instruction));
      continue;
    }
    const PageRange stub = process->stub_range();
    process->leader().start_step(instruction, SYS_munmap, {stub.start, stub.bytes()});
    leaving.emplace_back(process, instruction);
  }
  for (const auto& [process, instruction] : leaving) {
    const long result = process->leader().finish_step(instruction);
    if (result < 0) {
      throw SysError("unmap the stub", static_cast<int>(-result), on_pid(process->pid()));
    }
  }
}

void Promotion::let_go(const GroupImage& image) {
  for (const ProcessImage& process : image.processes) {
    for (const ThreadImage& thread : process.threads) apply_registers(thread.tid, thread);
  }
  for (const ProcessImage& process : image.processes) {
    for (const ThreadImage& thread : process.threads) {
      if (scheduling_ == SetPolicy::kLater) apply_policy(thread.tid, thread.scheduling);
    }
  }
  for (const ProcessImage& process : image.processes) {
    StubProcess& member = tree_.at(process.pid);
    // One thread that gets SIGSTOP stops them all.
    member.leader().detach(process.stopped ? SIGSTOP : 0);
    for (auto& [tid, thread] : member.threads()) {
      // A thread may be gone already: killed by one that runs.
      if (tid != process.pid) thread.detach();
    }
  }
}

uint64_t Promotion::free_moved() {
  uint64_t freed = 0;
  std::erase_if(assistants_, [&freed](const auto& assistant) {
    if (!assistant->ready()) return false;
    freed += assistant->finish();
    return true;
  });
  return freed;
}

}  // namespace replpage
