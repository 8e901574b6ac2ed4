#include "core/group/group_capture.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>

#include "core/base/clock.h"
#include "core/base/not_this_time.h"
#include "core/base/proc_stat.h"
#include "core/base/procfs.h"
#include "core/base/sys_error.h"
#include "core/group/group_types.h"
#include "core/image/kernel_reader.h"
#include "core/memory/memory_map.h"
#include "core/memory/page_ranges.h"

namespace replpage {
namespace {

// Threads that were let go from their exit stop are not the tree's any more but still have to tell
// their joiners (the kernel clears a word in memory and wakes them). An image from before that
// would make a join in the replica wait for ever, so they are waited for. False: one took too long.
bool leavers_are_gone(const TracedProcess& process) {
  constexpr uint64_t kLeaveUs = 5000;
  const std::string tasks = "/proc/" + std::to_string(process.pid) + "/task/";
  // Each thread is a folder, so the links count them (proc_task_getattr in fs/proc/base.c).
  struct stat folder {};
  const bool counted = ::stat(tasks.c_str(), &folder) == 0;
  if (counted && folder.st_nlink == process.threads.size() + 2) return true;
  for (const uint64_t began = now_us(); now_us() - began < kLeaveUs;) {
    const auto tids = numeric_entries(tasks);
    if (!tids) return true;
    const bool leaving = std::any_of(tids->begin(), tids->end(), [&](pid_t tid) {
      if (process.threads.contains(tid)) return false;
      return !is_dead(process.pid, tid);
    });
    if (!leaving) return true;
    std::this_thread::sleep_for(std::chrono::microseconds(50));
  }
  return false;
}

// A whole member, or a thread, would be missing.
constexpr const char* kKilledMeanwhile = "a process was killed while its state was read";

// More than this is not copied for the first time while the primary stands still.
constexpr uint64_t kGrowthPages = 512;

// Size of the address space, the first field of /proc/PID/statm (proc(5)).
uint64_t mapped_pages(pid_t pid) {
  const auto text = read_proc("/proc/" + std::to_string(pid) + "/statm");
  return text ? std::strtoull(text->c_str(), nullptr, 10) : 0;
}

// Passes everything on until the capture is cancelled.
class CancellableSink final : public PageSink {
 public:
  CancellableSink(PageSink& sink, const std::atomic<bool>& cancelled)
      : sink_(sink), cancelled_(cancelled) {}
  std::span<uint8_t> reserve(uint64_t bytes) override {
    if (cancelled_) throw CaptureCancelled();
    return sink_.reserve(bytes);
  }
  [[nodiscard]] uint64_t chunk_bytes_max() const override { return sink_.chunk_bytes_max(); }
  uint64_t keep(uint64_t used) override { return sink_.keep(used); }
  void add(const PageRun& run) override { sink_.add(run); }

 private:
  PageSink& sink_;
  const std::atomic<bool>& cancelled_;
};

void accumulate(CopyRound& total, const CopyRound& round) {
  total.data_pages += round.data_pages;
  total.zero_pages += round.zero_pages;
  total.absent_pages += round.absent_pages;
  total.mapped_bytes += round.mapped_bytes;
  total.process_gone = total.process_gone || round.process_gone;
}

// Leader first, then ascending; threads at an exit stop of a living process are leaving.
std::vector<pid_t> thread_ids(const TracedProcess& process) {
  std::vector<pid_t> ids{process.pid};
  for (const auto& [tid, thread] : process.threads) {
    if (tid != process.pid) ids.push_back(tid);
  }
  return ids;
}

// Those that execve(2) makes last: a process that runs may be in the middle of it, and what it has
// of its new address space is not to be followed.
ptrdiff_t kernel_mappings(const std::vector<MappingImage>& mappings) {
  return std::count_if(mappings.begin(), mappings.end(), [](const MappingImage& mapping) {
    return mapping.kind == MappingKind::kVdso || mapping.kind == MappingKind::kVvar;
  });
}

std::vector<pid_t> at_exit_stops(const TracedProcess& process) {
  std::vector<pid_t> ids;
  for (const auto& [tid, thread] : process.threads) {
    if (thread.stop == StopKind::kExit) ids.push_back(tid);
  }
  return ids;
}

// One thread that notices stops them all.
bool is_job_stopped(const TracedProcess& process) {
  return std::any_of(process.threads.begin(), process.threads.end(),
                     [](const auto& entry) { return entry.second.job_stopped; });
}

// With the kernel reader what seldom changes has a mark that changes along with it.
bool is_slow(const StateDetail& detail) {
  return detail.slow_state || (detail.last && KernelReader::instance() == nullptr);
}

}  // namespace

GroupCapture::GroupCapture(TraceTree& tree, std::optional<TrackerKind> tracker,
                           std::string stdio_path, const std::atomic<bool>& cancelled)
    : tree_(tree),
      wanted_(tracker),
      stdio_path_(std::move(stdio_path)),
      descriptors_(DescriptorCapture::create()),
      shared_(SharedObjectCapture::create()),
      cancelled_(cancelled) {}

std::vector<const TracedProcess*> GroupCapture::parents_first() const {
  std::vector<const TracedProcess*> order;
  const auto& all = tree_.processes();
  const auto root = all.find(tree_.root());
  if (root != all.end()) order.push_back(&root->second);
  if (order.size() == all.size()) return order;
  std::map<pid_t, pid_t> parents;
  for (const auto& [pid, process] : all) {
    parents[pid] = parent_of(pid);
  }
  const auto placed = [&order](pid_t pid) {
    return std::any_of(order.begin(), order.end(), [pid](auto* p) { return p->pid == pid; });
  };
  // One more level of the tree with each pass; orphans, whose parent is outside, come first.
  for (bool progress = true; progress;) {
    progress = false;
    for (const auto& [pid, process] : all) {
      if (placed(pid)) continue;
      if (all.contains(parents[pid]) && !placed(parents[pid])) continue;
      order.push_back(&process);
      progress = true;
    }
  }
  return order;
}

std::optional<ProcessImage> GroupCapture::capture_member(Member& member,
                                                         const TracedProcess& process,
                                                         const StateDetail& detail) {
  if (!process.threads.contains(process.pid)) throw RefusedError({no_main_thread(process.pid)});
  if (!leavers_are_gone(process)) {
    throw SysError("wait for a leaving thread", ETIMEDOUT, on_pid(process.pid));
  }
  const ProcessImage* previous = member.last ? &*member.last : nullptr;
  ProcessCaptureInput input{.host_pid = process.pid,
                            .host_tids = thread_ids(process),
                            .previous = previous,
                            .slow_state = is_slow(detail) || previous == nullptr,
                            .killed = at_exit_stops(process),
                            .job_stopped = is_job_stopped(process),
                            .continued = process.continued,
                            .inject = {}};
  // At its exit stop a thread makes no calls any more.
  if (detail.inject && input.killed.empty()) {
    input.inject = [this](pid_t tid, long number, std::array<uint64_t, 6> arguments,
                          std::vector<uint8_t>* data) {
      return tree_.inject(tid, number, arguments, data);
    };
  }
  auto image = capture_process(input);
  if (!image) return std::nullopt;
  const auto known = std::exchange(member.last_mappings, nullptr);
  auto mappings = known ? std::optional(*known) : read_mappings(process.pid, previous, detail);
  if (!mappings) return std::nullopt;
  image->mappings = std::move(*mappings);
  member.asked |= static_cast<bool>(input.inject);
  return image;
}

// Flags of mappings that the kernel itself tells cost nothing; where it does not, /proc/PID/smaps
// costs 18 ms a GiB.
std::optional<std::vector<MappingImage>> GroupCapture::read_mappings(pid_t host_pid,
                                                                     const ProcessImage* previous,
                                                                     const StateDetail& detail) {
  static const std::vector<MappingImage> kNone;
  const bool first = previous == nullptr || detail.first;
  if (!first && (detail.slow_state || detail.last)) {
    KernelReader* const reader = KernelReader::instance();
    const auto bits = reader ? reader->read_mappings(host_pid) : std::nullopt;
    auto mappings = bits ? read_memory_map(host_pid, *bits, detail.slow_state) : std::nullopt;
    if (mappings) return mappings;
  }
  return read_memory_map(host_pid, previous ? previous->mappings : kNone,
                         first || detail.slow_state || detail.last,
                         detail.first ? detail.refusals : nullptr);
}

namespace {

// What is left of them was read later than the rest. Rather a little late than early.
void date_back_timers(GroupImage& image) {
  if (image.processes.empty()) return;
  const uint64_t passed_ns = now_ns() - image.processes.front().captured_ns;
  for (OpenFileImage& file : image.open_files) {
    const bool armed = file.kind == OpenFileKind::kTimerFd && file.timer_value_ns != 0;
    if (armed) file.timer_value_ns += passed_ns;
  }
}

}  // namespace

GroupImage GroupCapture::capture_state(const StateDetail& detail) {
  GroupImage image;
  forget_gone();
  if (!tree_.processes().contains(tree_.root())) {
    throw SysError("read the main process", ESRCH, on_pid(tree_.root()));
  }
  for (const TracedProcess* process : parents_first()) {
    if (ends_by_itself(*process)) continue;
    Member* const member = known_member(*process);
    auto captured = member ? capture_member(*member, *process, detail) : std::nullopt;
    if (!captured) throw NotThisTime(kKilledMeanwhile);
    image.processes.push_back(*captured);
    member->last = std::move(*captured);
  }
  fill_parents(image);
  fill_shared_objects(image, WhenGone::kThrow);
  fill_zombies(image, detail.unseen_ends);
  DescriptorCaptureInput input = descriptor_input(image);
  input.refusals = detail.refusals;
  input.check_threads = detail.first;
  input.with_content = detail.with_content;
  descriptors_->capture(input, image);
  date_back_timers(image);
  if (!tree_.stands_still()) throw NotThisTime(kKilledMeanwhile);
  return image;
}

void GroupCapture::fill_parents(GroupImage& image) const {
  for (ProcessImage& process : image.processes) {
    const pid_t host = host_pid_of(process.pid);
    process.parent = 0;
    if (host == tree_.root()) continue;
    const auto parent = members_.find(parent_of(host));
    if (parent != members_.end()) process.parent = parent->second.group_pid;
  }
}

// Numbers stay the same for the life of the group: staged runs carry them.
uint32_t GroupCapture::object_id(uint64_t device, uint64_t inode) {
  const auto next = static_cast<uint32_t>(object_ids_.size());
  return object_ids_.try_emplace({device, inode}, next).first->second;
}

bool GroupCapture::add_shared_object(GroupImage& image, const ProcessImage& process,
                                     const MappingImage& mapping) {
  const auto same = [&mapping](const SharedObjectImage& object) {
    return object.device == mapping.device && object.inode == mapping.inode;
  };
  if (std::any_of(image.shared_objects.begin(), image.shared_objects.end(), same)) return true;
  char link[96];
  std::snprintf(link, sizeof link, "/proc/%d/map_files/%llx-%llx", host_pid_of(process.pid),
                static_cast<unsigned long long>(mapping.start),
                static_cast<unsigned long long>(mapping.end));
  struct stat status {};
  if (::stat(link, &status) != 0) {
    if (errno == ENOENT || errno == ESRCH) return false;
    throw SysError::from_errno("stat", on_path(link));
  }
  image.shared_objects.push_back({.id = object_id(mapping.device, mapping.inode),
                                  .device = mapping.device,
                                  .inode = mapping.inode,
                                  .size = static_cast<uint64_t>(status.st_size),
                                  .is_memfd = false,  // known when descriptors have been read
                                  .seals = 0,
                                  .name = mapping.path});
  return true;
}

void GroupCapture::fill_shared_objects(GroupImage& image, WhenGone when_gone) {
  for (ProcessImage& process : image.processes) {
    std::erase_if(process.mappings, [&](const MappingImage& mapping) {
      const bool shared =
          mapping.kind == MappingKind::kSharedObject || mapping.kind == MappingKind::kMemfdPrivate;
      if (!shared || add_shared_object(image, process, mapping)) return false;
      if (when_gone == WhenGone::kDrop) return true;
      throw SysError("look at shared memory", ENOENT,
                     at_address(host_pid_of(process.pid), mapping.start));
    });
  }
}

DescriptorCaptureInput GroupCapture::descriptor_input(const GroupImage& image) {
  DescriptorCaptureInput input;
  input.stream_path = stdio_path_;
  input.object_id = [this](uint64_t device, uint64_t inode) { return object_id(device, inode); };
  for (const ProcessImage& process : image.processes) {
    input.processes.push_back({.host_pid = host_pid_of(process.pid), .group_pid = process.pid});
  }
  return input;
}

std::vector<UniqueFd> GroupCapture::take_descriptors(const GroupImage& image) {
  return DescriptorCapture::take(descriptor_input(image), image);
}

CopyRound GroupCapture::copy_all(const GroupImage& image, PageSink& sink) {
  CopyRound total;
  std::vector<SharedObjectCapture::ProcessView> views;
  for (const ProcessImage& process : image.processes) {
    Member* member = member_of(process.pid);
    if (member == nullptr || !member->memory) continue;
    accumulate(total, member->memory->copy_changed(process.mappings, sink));
    views.push_back({member->host_pid, &process, member->memory.get()});
  }
  if (shared_unseen_.exchange(false)) shared_->copy_all_again();
  has_shared_ = !image.shared_objects.empty();
  accumulate(total, shared_->copy_changed(views, image.shared_objects, sink));
  return total;
}

void GroupCapture::track_all(const GroupImage& image) {
  for (const ProcessImage& process : image.processes) {
    Member* member = member_of(process.pid);
    if (member == nullptr || !member->memory) continue;
    member->memory->track(process.mappings);
    member->tracked_pages = mapped_pages(member->host_pid);
  }
}

void GroupCapture::track_mappings(const GroupImage& image) {
  const std::lock_guard lock(memory_mutex_);
  track_all(image);
}

bool GroupCapture::has_grown() const {
  return std::any_of(members_.begin(), members_.end(), [](const auto& entry) {
    const Member& member = entry.second;
    return member.memory && mapped_pages(member.host_pid) > member.tracked_pages + kGrowthPages;
  });
}

CopyRound GroupCapture::copy_frozen(const GroupImage& image, PageSink& sink) {
  const std::lock_guard lock(memory_mutex_);
  track_all(image);
  const CopyRound round = copy_all(image, sink);
  copy_young(image, sink);
  // Memory that went while everything stood still (the OOM reaper) makes no epoch.
  if (round.process_gone) throw SysError("copy the memory of a stopped group", ESRCH);
  return round;
}

void GroupCapture::refresh_mappings(GroupImage& image) {
  const std::lock_guard lock(memory_mutex_);
  for (ProcessImage& process : image.processes) {
    const Member* member = member_of(process.pid);
    if (member == nullptr) continue;
    auto mappings = read_memory_map(member->host_pid, process.mappings, false, nullptr);
    if (mappings && kernel_mappings(*mappings) >= kernel_mappings(process.mappings))
      process.mappings = std::move(*mappings);
  }
  fill_shared_objects(image, WhenGone::kDrop);
}

CopyRound GroupCapture::copy_running(const GroupImage& image, PageSink& sink) {
  const std::lock_guard lock(memory_mutex_);
  CancellableSink cancellable(sink, cancelled_);
  return copy_all(image, cancellable);
}

uint64_t GroupCapture::count_dirty(const GroupImage& image, uint64_t limit) {
  const std::lock_guard lock(memory_mutex_);
  uint64_t pages = 0;
  for (const ProcessImage& process : image.processes) {
    Member* member = member_of(process.pid);
    if (member == nullptr || !member->memory || pages >= limit) continue;
    pages += member->memory->count_dirty(process.mappings, limit - pages);
  }
  return pages;
}

void GroupCapture::copy_again(const std::vector<PageRun>& runs) {
  struct Owed {
    PageRanges written, absent;
  };
  std::map<int32_t, Owed> owed;
  const std::lock_guard lock(memory_mutex_);
  for (const PageRun& run : runs) {
    const PageRange range{run.address, run.address + run.length};
    if (run.pid == 0) {
      shared_->copy_again(run.object, range);
    } else if (run.kind == PageRunKind::kAbsent) {
      owed[run.pid].absent.push_back(range);
    } else {
      owed[run.pid].written.push_back(range);
    }
  }
  for (auto& [pid, ranges] : owed) {
    Member* const member = member_of(pid);
    if (member == nullptr || !member->memory) continue;
    member->memory->copy_again(normal_ranges(std::move(ranges.written)),
                               normal_ranges(std::move(ranges.absent)));
  }
}

// A look at much memory takes its time, and another CPU can take it.
void GroupCapture::begin_last_look() {
  constexpr uint64_t kMuchBytes = 512u << 20;  // about 150 us, and so is a wake-up
  struct Look {
    MemoryCapture* memory;
    std::shared_ptr<const std::vector<MappingImage>> mappings;
  };
  std::vector<Look> looks;
  uint64_t bytes = 0;
  for (auto& [pid, member] : members_) {
    const auto process = tree_.processes().find(pid);
    if (process == tree_.processes().end() || !member.last || !member.memory ||
        !is_same(member, process->second)) {
      continue;
    }
    auto mappings = read_mappings(pid, &*member.last, {.last = true});
    if (!mappings) continue;
    member.last_mappings = std::make_shared<const std::vector<MappingImage>>(std::move(*mappings));
    looks.push_back({member.memory.get(), member.last_mappings});
    for (const MappingImage& mapping : *member.last_mappings) bytes += mapping.range().bytes();
  }
  auto work = [this, looks = std::move(looks)] {
    const std::lock_guard lock(memory_mutex_);
    for (const Look& look : looks) look.memory->look_last(*look.mappings);
  };
  if (bytes < kMuchBytes) return work();
  look_thread_.start(std::move(work));
}

void GroupCapture::end_last_look() { look_thread_.wait(); }

std::vector<LazyRange> GroupCapture::copy_last(const GroupImage& image, PageSink& sink,
                                               uint64_t copy_pages_max) {
  const std::lock_guard lock(memory_mutex_);
  std::vector<LazyRange> lazy;
  std::vector<SharedObjectCapture::ProcessView> views;
  for (const ProcessImage& process : image.processes) {
    Member* member = member_of(process.pid);
    if (member == nullptr) continue;
    if (member->memory) {
      views.push_back({member->host_pid, &process, member->memory.get()});
    } else {
      // Born, or another program, since the last epoch: no page of it was ever copied.
      shared_->note_exit(member->host_pid, nullptr);
      member->memory = MemoryCapture::create_for_last_copy(member->host_pid, member->group_pid);
    }
    const auto part = member->memory->copy_last(process.mappings, sink, copy_pages_max);
    lazy.insert(lazy.end(), part.begin(), part.end());
  }
  if (shared_unseen_.exchange(false)) shared_->copy_all_again();
  shared_->copy_changed(views, image.shared_objects, sink);
  return lazy;
}

}  // namespace replpage
