#include "core/restore/readiness.h"

#include <sched.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "core/base/sys_error.h"
#include "core/image/task_status.h"
#include "core/restore/process_state.h"

namespace replpage {
namespace {

// A thread that ran before others comes back with the default, and only it can set another.
bool has_own_timer_slack(const GroupImage& image) {
  constexpr uint64_t kDefaultNs = 50'000;
  return std::any_of(image.processes.begin(), image.processes.end(), [](const ProcessImage& p) {
    return std::any_of(p.threads.begin(), p.threads.end(), [](const ThreadImage& thread) {
      return thread.scheduling.timer_slack_ns != kDefaultNs;
    });
  });
}

size_t threads_of(const GroupImage& image) {
  size_t threads = 0;
  for (const ProcessImage& process : image.processes) threads += process.threads.size();
  return threads;
}

const ThreadImage* find_thread(const ProcessImage& process, int32_t tid) {
  const auto found = std::find_if(process.threads.begin(), process.threads.end(),
                                  [tid](const ThreadImage& thread) { return thread.tid == tid; });
  return found == process.threads.end() ? nullptr : &*found;
}

std::optional<Credentials> own_credentials() {
  const auto status = read_task_status(::getpid());
  const int securebits = ::prctl(PR_GET_SECUREBITS);
  if (!status || securebits < 0) return std::nullopt;
  Credentials own = status->credentials;
  own.securebits = static_cast<uint32_t>(securebits);
  return own;
}

const MappingImage* mapping_at(const ProcessImage& process, uint64_t address) {
  const auto found =
      std::upper_bound(process.mappings.begin(), process.mappings.end(), address,
                       [](uint64_t a, const MappingImage& mapping) { return a < mapping.end; });
  return found == process.mappings.end() || found->start > address ? nullptr : &*found;
}

// The kernel writes there whenever the thread goes on.
bool keeps_rseq_area(const ProcessImage& before, const ProcessImage& after,
                     const RseqRegistration& rseq) {
  if (rseq.pointer == 0) return true;
  const MappingImage* old = mapping_at(before, rseq.pointer);
  const MappingImage* next = mapping_at(after, rseq.pointer);
  return old != nullptr && next != nullptr && old->kind == next->kind &&
         old->start == next->start && (next->prot & PROT_WRITE) != 0;
}

// The kernel writes there before anybody serves faults. A page that comes later, from the page
// store or the dying process, must not be there by then, half made of zeros.
bool holds_rseq_area(const AddressSpace& memory, const RseqRegistration& rseq) {
  if (rseq.pointer == 0) return false;
  const uint64_t end = rseq.pointer + rseq.size;
  const auto cold = memory.cold().first_from(rseq.pointer);
  if (cold && cold->start < end) return false;
  return std::any_of(
      memory.regions().begin(), memory.regions().end(), [&](const AddressSpace::Region& region) {
        return region.written && region.image.start <= rseq.pointer && end <= region.image.end;
      });
}

// Those that are new are forked.
bool same_zombies(const std::vector<ZombieImage>& one, const std::vector<ZombieImage>& other) {
  return std::equal(one.begin(), one.end(), other.begin(), other.end(),
                    [](const ZombieImage& a, const ZombieImage& b) {
                      return a.pid == b.pid && a.parent == b.parent;
                    });
}

bool keeps_threads(const ProcessImage& before, const ProcessImage& after) {
  if (before.threads.size() != after.threads.size()) return false;
  return std::all_of(after.threads.begin(), after.threads.end(), [&](const ThreadImage& thread) {
    const ThreadImage* old = find_thread(before, thread.tid);
    return old != nullptr && old->rseq == thread.rseq &&
           keeps_rseq_area(before, after, thread.rseq);
  });
}

}  // namespace

void Readiness::get_ready(const GroupImage& image) {
  hurry(image);
  try {
    set_ahead(image);
  } catch (const SysError&) {  // the promotion will tell, if it is still so
    set_ = image;
    take_back();
  }
}

SetScheduling Readiness::hurry(const GroupImage& image) {
  const SetScheduling before = std::exchange(scheduling_, make_urgent(image));
  if (set_ && scheduling_ != before) take_back();
  return scheduling_;
}

void Readiness::give_way(pid_t tid) const {
  if (cpu_) cpu_->leave(tid);
  run_after_others(tid);
}

SetScheduling Readiness::make_urgent(const GroupImage& image) {
  constexpr size_t kTogetherMax = 16;  // more do better side by side
  if (!cpu_) cpu_.emplace();
  if (has_own_timer_slack(image)) {
    for (const int32_t tid : hurried_) run_as_others(tid);
    hurried_.clear();
    return SetScheduling::kByItself;
  }
  const bool together = threads_of(image) <= kTogetherMax;
  for (const ProcessImage& process : image.processes) {
    for (const ThreadImage& thread : process.threads) {
      if (!hurried_.insert(thread.tid).second) continue;
      if (!run_before_others(thread.tid)) {
        hurried_.erase(thread.tid);
        return hurried_.empty() ? SetScheduling::kByItself : SetScheduling::kLater;
      }
      if (together) (void)cpu_->take(thread.tid);
    }
  }
  return SetScheduling::kLater;
}

// Without the rseq area of the leaders: they prepare their processes' memory later.
void Readiness::set_ahead(const GroupImage& image) {
  for (const ProcessImage& process : image.processes) {
    SyscallBatch leader;
    add_lasting_state(process, leader);
    StubProcess& member = tree_.at(process.pid);
    for (const ThreadImage& thread : process.threads) {
      if (thread.tid == process.pid) {
        add_lasting_state(thread, scheduling_, leader);
        continue;
      }
      SyscallBatch batch;
      add_lasting_state(thread, scheduling_, batch);
      if (holds_rseq_area(member.memory(), thread.rseq)) {
        add_rseq(thread, batch);
        with_rseq_.insert(thread.tid);
      }
      member.begin(thread.tid, std::move(batch));
    }
    member.begin(process.pid, std::move(leader));
  }
  for (StubProcess* process : tree_.processes()) process->complete();
  for (const ProcessImage& process : image.processes) {
    apply_outer_state(process.pid, process);
    limits_[process.pid] = limits_of(process.pid);
  }
  credentials_ = own_credentials();
  set_ = image;
}

void Readiness::expect(const GroupImage& image) {
  if (set_ && !stays_alike(image)) take_back();
}

void Readiness::take_back() {
  const GroupImage before = std::move(*set_);
  set_.reset();
  with_rseq_.clear();
  credentials_.reset();
  limits_.clear();
  for (const ProcessImage& process : before.processes) {
    for (const ThreadImage& thread : process.threads) {
      SyscallBatch batch;
      add_removal(thread, batch);
      tree_.at(process.pid).run(batch, thread.tid);
    }
  }
}

// The same processes with the same threads, as far as the replica's numbers tell.
bool Readiness::stays_alike(const GroupImage& image) const {
  const auto& before = set_->processes;
  return before.size() == image.processes.size() && same_zombies(set_->zombies, image.zombies) &&
         std::all_of(image.processes.begin(), image.processes.end(), [&](const ProcessImage& next) {
           const ProcessImage* old = process_of(next.pid);
           return old != nullptr && old->parent == next.parent && old->session == next.session &&
                  old->executable == next.executable && keeps_threads(*old, next);
         });
}

const ProcessImage* Readiness::process_of(int32_t pid) const {
  if (!set_) return nullptr;
  const auto found =
      std::find_if(set_->processes.begin(), set_->processes.end(),
                   [pid](const ProcessImage& process) { return process.pid == pid; });
  return found == set_->processes.end() ? nullptr : &*found;
}

bool Readiness::layout_is_set(const ProcessImage& process) const {
  const ProcessImage* before = process_of(process.pid);
  return before != nullptr && lasts_alike(*before, process);
}

void Readiness::add_process(const ProcessImage& process, int directory, SyscallBatch& batch) const {
  if (!layout_is_set(process)) add_lasting_state(process, batch);
  const auto limits = limits_.find(process.pid);
  add_passing_state(process, directory,
                    limits == limits_.end() ? std::vector<ResourceLimit>() : limits->second, batch);
}

void Readiness::add_thread(const ProcessImage& process, const ThreadImage& thread,
                           SyscallBatch& batch) const {
  const ProcessImage* before = process_of(process.pid);
  const ThreadImage* old = before == nullptr ? nullptr : find_thread(*before, thread.tid);
  // The layout is set by means of the leader's robust list.
  const bool disturbed = thread.tid == process.pid && !layout_is_set(process);
  const bool set = old != nullptr && !disturbed && lasts_alike(*old, thread);
  if (!set) {
    if (old != nullptr) add_removal(*old, batch);
    add_lasting_state(thread, scheduling_, batch);
  }
  if (!set || !with_rseq_.contains(thread.tid)) add_rseq(thread, batch);
  add_passing_state(process, thread, credentials_ ? &*credentials_ : nullptr, batch);
}

void Readiness::apply_outer(const ProcessImage& process) const {
  const ProcessImage* before = process_of(process.pid);
  const bool set = before != nullptr && before->oom_score_adj == process.oom_score_adj &&
                   before->core_dump_filter == process.core_dump_filter;
  if (!set) apply_outer_state(process.pid, process);
}

}  // namespace replpage
