#include "core/restore/promotion.h"

#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include <algorithm>
#include <ctime>
#include <utility>

#include "core/base/clock.h"
#include "core/base/proc_stat.h"
#include "core/base/procfs.h"
#include "core/base/sys_error.h"
#include "core/base/urgency.h"
#include "core/memory/page_ranges.h"
#include "core/restore/drill.h"
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

// Longest time that a group is kept from running for locks that somebody else holds.
constexpr uint64_t kLocksUsMax = 3'000'000;

// A process that gets a SIGSTOP has little to do before it stops; one that is killed meanwhile, or
// hangs in the kernel, is not waited for.
constexpr uint64_t kStopUsMax = 1'000'000;
constexpr timespec kStopLook{.tv_sec = 0, .tv_nsec = 20'000};

bool has_stopped(pid_t pid) {
  const auto tids = numeric_entries("/proc/" + std::to_string(pid) + "/task");
  return !tids || std::all_of(tids->begin(), tids->end(), [pid](pid_t tid) {
    const auto stat = ProcStat::of(pid, tid);
    return !stat || stat->state() == 'T' || stat->is_dead();
  });
}

void wait_until_stopped(pid_t pid) {
  const uint64_t deadline = now_us() + kStopUsMax;
  while (!has_stopped(pid)) {
    if (now_us() > deadline) return;
    // Asleep: the keeper runs before others, and that process may need its processor.
    ::nanosleep(&kStopLook, nullptr);
  }
}

std::vector<pid_t> threads_of(const GroupImage& image) {
  std::vector<pid_t> tids;
  for (const ProcessImage& process : image.processes) {
    for (const ThreadImage& thread : process.threads) tids.push_back(thread.tid);
  }
  return tids;
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
  scheduling_ = readiness_.hurry(image);
  give_memfds(input);
  prepare_lazy(input, promoted);
  if (before_run) before_run(promoted);

  std::vector<ReplicaProcess*> processes;
  for (StubProcess* process : tree_.processes()) processes.push_back(process);
  for (QueuedLock& queued : install_descriptors(input, processes)) {
    queued_[queued.pid].push_back(queued);
  }
  objects_.seal();
  restore_state(image);
  leave_stubs();
  give_registers(image);
  promoted.ran_us = now_us();
  if (input.drill_us != 0) {
    promoted.drill = try_out(threads_of(image), input.drill_us);
    return promoted;
  }
  let_go(image);
  readiness_.finish();
  promoted.ran_us = now_us();
  promoted.took_us = promoted.ran_us - started;
  return promoted;
}

void Promotion::keep_directory(const ProcessImage& process, const PrimaryFiles& files) {
  if (!is_removed(process.working_directory)) {
    directories_.erase(process.pid);
    return;
  }
  KeptDirectory& kept = directories_[process.pid];
  if (kept.path == process.working_directory) return;
  kept = {process.working_directory, files.open_directory(process.working_directory)};
  if (!kept.fd.valid()) {
    directories_.erase(process.pid);
    throw SysError("find the removed working directory", ENOENT,
                   on_path(process.working_directory));
  }
}

std::map<int32_t, int> Promotion::give_directories() {
  std::map<int32_t, int> numbers;
  for (const auto& [pid, directory] : directories_) {
    const int fd = directory.fd.get();
    if (StubProcess* process = tree_.find(pid)) numbers[pid] = process->receive({&fd, 1}, 0)[0];
  }
  return numbers;
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
  for (StubProcess* process : tree_.processes()) {
    LazyRanges& cold = process->memory().cold();
    if (!cold.empty()) {
      by_pid.try_emplace(process->pid());
    } else if (!by_pid.contains(process->pid())) {
      process->memory().guard().end();
    }
  }
  for (auto& [pid, told] : by_pid) {
    PageRanges ranges = normal_ranges(std::move(told));
    StubProcess* process = tree_.find(pid);
    if (process == nullptr) throw SysError("serve memory later", ESRCH, on_pid(pid));
    LazyMemory lazy(*process);
    Uffd uffd = lazy.prepare(ranges);
    if (!lazy.moved().empty()) moved_[pid] = lazy.moved();
    promoted.lazy.push_back(
        {pid, std::move(uffd), std::move(ranges), std::exchange(process->memory().cold(), {})});
  }
}

void Promotion::complete_all() {
  for (StubProcess* process : tree_.processes()) process->complete();
}

// All threads at the same time, but for the leaders, which come last: the rest needs their rights,
// and is disturbed by a change of anybody's credentials.
void Promotion::restore_state(const GroupImage& image) {
  const auto directories = give_directories();
  for (const ProcessImage& process : image.processes) {
    for (const ThreadImage& thread : process.threads) {
      if (thread.tid == process.pid) continue;
      SyscallBatch batch;
      readiness_.add_thread(process, thread, batch);
      if (!batch.empty()) tree_.at(process.pid).begin(thread.tid, std::move(batch));
    }
  }
  complete_all();
  for (const ProcessImage& process : image.processes) {
    SyscallBatch batch;
    add_signal_flush(batch);
    const auto removed = directories.find(process.pid);
    readiness_.add_process(process, removed == directories.end() ? -1 : removed->second, batch);
    readiness_.add_thread(process, process.threads.front(), batch);
    add_final_state(process, batch);
    tree_.at(process.pid).begin(process.pid, std::move(batch));
  }
  for (const ProcessImage& process : image.processes) readiness_.apply_outer(process);
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
      readiness_.give_way(assistants_.back()->tid());
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

void Promotion::give_registers(const GroupImage& image) {
  for (const ProcessImage& process : image.processes) {
    for (const ThreadImage& thread : process.threads) apply_registers(thread.tid, thread);
  }
}

void Promotion::let_go(const GroupImage& image) {
  for (const ProcessImage& process : image.processes) kept_.push_back(kept_of(process));
  for (const ProcessImage& process : image.processes) {
    for (const ThreadImage& thread : process.threads) {
      if (scheduling_ == SetScheduling::kLater) apply_scheduling(thread.tid, thread.scheduling);
    }
  }
  // A program that runs without a lock it believes to have could release it before it is had, or
  // see it taken by one of its own: the group waits until the dying process has let go of it.
  if (locks_waited_for()) {
    lock_deadline_us_ = now_us() + kLocksUsMax;
  } else {
    detach_all();
  }
}

// Of the process's own signals its main thread gets those.
Promotion::Kept Promotion::kept_of(const ProcessImage& process) {
  Kept kept{.pid = process.pid, .job_control = process.job_control, .traps = {}};
  const auto take = [&kept](int32_t tid, const SignalInfo& info) {
    if (signal_of(info) == SIGSTOP) kept.job_control = JobControl::kStopped;
    if (signal_of(info) == SIGTRAP) kept.traps.emplace(tid, info);
  };
  for (const ThreadImage& thread : process.threads) {
    for (const SignalInfo& info : thread.pending) take(thread.tid, info);
  }
  for (const SignalInfo& info : process.pending) take(process.pid, info);
  return kept;
}

void Promotion::detach(const Kept& kept) {
  StubProcess& member = tree_.at(kept.pid);
  const auto let_go = [&kept](int32_t tid, RemoteThread& thread, int otherwise) {
    const auto trap = kept.traps.find(tid);
    // A thread may be gone already: killed by one that runs.
    trap == kept.traps.end() ? thread.detach(otherwise) : thread.detach(trap->second);
  };
  const bool stops = kept.job_control != JobControl::kRuns;
  // One thread that gets SIGSTOP stops them all.
  if (stops && kept.traps.contains(kept.pid)) ::kill(kept.pid, SIGSTOP);
  let_go(kept.pid, member.leader(), stops ? SIGSTOP : 0);
  for (auto& [tid, thread] : member.threads()) {
    if (tid != kept.pid) let_go(tid, thread, 0);
  }
  if (!stops) return;
  wait_until_stopped(kept.pid);
  // Only one that was stopped tells its parent that it has been continued.
  if (kept.job_control == JobControl::kContinued) ::kill(kept.pid, SIGCONT);
}

// First those that stop, and until they have: a SIGCONT of another that ran already would be lost.
void Promotion::detach_all() {
  lock_deadline_us_ = 0;
  auto kept = std::exchange(kept_, {});
  const auto running = std::stable_partition(kept.begin(), kept.end(), [](const Kept& process) {
    return process.job_control != JobControl::kRuns;
  });
  std::for_each(kept.begin(), running, [this](const Kept& process) { detach(process); });
  std::for_each(running, kept.end(), [this](const Kept& process) { detach(process); });
}

bool Promotion::locks_waited_for() const {
  return std::any_of(assistants_.begin(), assistants_.end(),
                     [](const auto& assistant) { return !assistant->ready(); });
}

uint64_t Promotion::free_moved(bool locks_only) {
  uint64_t freed = 0;
  std::erase_if(assistants_, [&freed, locks_only](const auto& assistant) {
    if (assistant->is_orphan()) {
      assistant->kill();
      return true;
    }
    if (!assistant->ready() || (locks_only && !assistant->waits())) return false;
    return assistant->free_some(freed);
  });
  const bool late = lock_deadline_us_ != 0 && now_us() >= lock_deadline_us_;
  if (!kept_.empty() && (late || !locks_waited_for())) detach_all();
  return freed;
}

uint64_t Promotion::free_again_us() const {
  const bool more = std::any_of(assistants_.begin(), assistants_.end(),
                                [](const auto& assistant) { return assistant->has_more(); });
  return more ? now_us() : lock_deadline_us_;
}

}  // namespace replpage
