#include "core/restore/promotion.h"

#include <sys/mman.h>
#include <sys/syscall.h>

#include <ctime>

#include "core/base/clock.h"
#include "core/base/sys_error.h"
#include "core/restore/process_state.h"
#include "core/restore/thread_state.h"

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
  restore_descriptors(input, processes);
  objects_.seal();
  for (const ProcessImage& process : image.processes) restore_state(process);
  for (StubProcess* process : tree_.processes()) leave_stub(*process);
  let_go(image);
  promoted.took_us = now_us() - started;
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

void Promotion::restore_state(const ProcessImage& image) {
  StubProcess& process = tree_.at(image.pid);
  SyscallBatch shared;
  add_signal_flush(shared);
  add_process_state(image, shared);
  process.run(shared);
  for (const ThreadImage& thread : image.threads) {
    if (thread.tid == image.pid) continue;
    SyscallBatch batch;
    add_thread_state(image, thread, batch);
    process.run(batch, thread.tid);
  }
  SyscallBatch last;
  for (const ThreadImage& thread : image.threads) {
    if (thread.tid == image.pid) add_thread_state(image, thread, last);
  }
  add_final_state(image, last);
  process.run(last);
  apply_oom_score(image.pid, image);
}

void Promotion::leave_stub(StubProcess& process) {
  const uint64_t instruction = find_syscall_instruction(process);
  const auto moved = moved_.find(process.pid());
  if (moved != moved_.end()) {
    assistants_.push_back(std::make_unique<Assistant>(
        process, std::move(moved->second), tree_.is_child_of_keeper(process.pid()), instruction));
    return;
  }
  const PageRange stub = process.stub_range();
  const long result = process.leader().step(instruction, SYS_munmap, {stub.start, stub.bytes()});
  if (result < 0)
    throw SysError("unmap the stub", static_cast<int>(-result), on_pid(process.pid()));
}

void Promotion::let_go(const GroupImage& image) {
  for (const ProcessImage& process : image.processes) {
    for (const ThreadImage& thread : process.threads) apply_registers(thread.tid, thread);
  }
  for (const ProcessImage& process : image.processes) {
    // A thread may be gone already: killed by one that runs.
    for (auto& [tid, thread] : tree_.at(process.pid).threads()) thread.detach();
  }
}

uint64_t Promotion::free_moved() {
  uint64_t freed = 0;
  for (const auto& assistant : assistants_) freed += assistant->finish();
  assistants_.clear();
  return freed;
}

}  // namespace replpage
