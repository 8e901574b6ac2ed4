#include "core/capture/group_capture.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <sstream>
#include <thread>

#include "core/base/clock.h"
#include "core/base/procfs.h"
#include "core/base/sys_error.h"
#include "core/image/kernel_reader.h"
#include "core/memory/memory_map.h"

namespace replpage {
namespace {

// Fields of /proc/PID/stat behind the command's closing parenthesis (proc(5)).
struct StatFields {
  char state = '?';
  pid_t parent = 0, process_group = 0, session = 0;
  int exit_code = 0;  // as of wait(2), of a zombie
  std::string name;
};

std::optional<StatFields> read_stat(pid_t pid) {
  const auto text = read_proc("/proc/" + std::to_string(pid) + "/stat");
  if (!text) return std::nullopt;
  const size_t open = text->find('(');
  const size_t close = text->rfind(')');
  if (open == std::string::npos || close == std::string::npos) return std::nullopt;
  StatFields fields;
  fields.name = text->substr(open + 1, close - open - 1);
  if (std::sscanf(text->c_str() + close + 1, " %c %d %d %d", &fields.state, &fields.parent,
                  &fields.process_group, &fields.session) != 4) {
    return std::nullopt;
  }
  fields.exit_code = std::atoi(text->c_str() + text->find_last_of(' ') + 1);  // the last field, 52
  return fields;
}

// Ids as the group's own PID namespace has them: the last of each list in /proc/PID/status.
struct InnermostIds {
  int32_t pid = 0, process_group = 0, session = 0;
};

std::optional<int32_t> last_of(std::string_view status, std::string_view key) {
  const auto list = field_of(status, key);
  if (!list || list->empty()) return std::nullopt;
  const size_t blank = list->find_last_of(" \t");
  return std::stoi(std::string(blank == std::string_view::npos ? *list : list->substr(blank + 1)));
}

std::optional<InnermostIds> innermost_ids(pid_t host_pid) {
  const auto status = read_proc("/proc/" + std::to_string(host_pid) + "/status");
  if (!status) return std::nullopt;
  const auto pid = last_of(*status, "NSpid");
  if (!pid) return std::nullopt;
  return InnermostIds{.pid = *pid,
                      .process_group = last_of(*status, "NSpgid").value_or(*pid),
                      .session = last_of(*status, "NSsid").value_or(*pid)};
}

// Threads that were let go from their exit stop are not the tree's any more but still have to tell
// their joiners (the kernel clears a word in memory and wakes them). An image from before that
// would make a join in the replica wait for ever, so they are waited for. False: one took too long.
bool leavers_are_gone(const TracedProcess& process) {
  constexpr uint64_t kLeaveUs = 5000;
  const std::string tasks = "/proc/" + std::to_string(process.pid) + "/task/";
  for (const uint64_t began = now_us(); now_us() - began < kLeaveUs;) {
    const auto tids = numeric_entries(tasks);
    if (!tids) return true;
    const bool leaving = std::any_of(tids->begin(), tids->end(), [&](pid_t tid) {
      if (process.threads.contains(tid)) return false;
      const auto stat = read_proc(tasks + std::to_string(tid) + "/stat");
      return stat && stat->find(") Z ") == std::string::npos;
    });
    if (!leaving) return true;
    std::this_thread::sleep_for(std::chrono::microseconds(50));
  }
  return false;
}

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
  std::vector<pid_t> ids;
  if (process.threads.contains(process.pid)) ids.push_back(process.pid);
  for (const auto& [tid, thread] : process.threads) {
    if (tid != process.pid) ids.push_back(tid);
  }
  return ids;
}

// With the kernel reader what seldom changes has a mark that changes along with it.
bool is_slow(const StateDetail& detail) {
  return detail.slow_state || (detail.last && KernelReader::instance() == nullptr);
}

}  // namespace

GroupCapture::GroupCapture(TraceTree& tree, std::optional<TrackerKind> tracker,
                           std::string stdio_path)
    : tree_(tree),
      wanted_(tracker),
      stdio_path_(std::move(stdio_path)),
      descriptors_(DescriptorCapture::create()),
      shared_(SharedObjectCapture::create()) {}

bool GroupCapture::has_new() const {
  return std::any_of(tree_.processes().begin(), tree_.processes().end(), [this](const auto& entry) {
    const auto member = members_.find(entry.first);
    return member == members_.end() || !has_tracker(member->second);
  });
}

// A tracker serves one address space: after an execve it knows nothing.
bool GroupCapture::has_tracker(const Member& member) const {
  const auto process = tree_.processes().find(member.host_pid);
  // A kill on the way out of execve comes before the tracer hears of it.
  return member.memory && process != tree_.processes().end() &&
         process->second.executions == member.executions && member.memory->serves_process();
}

bool GroupCapture::admit_new() {
  const std::lock_guard lock(memory_mutex_);
  std::erase_if(members_, [this](const auto& m) { return !tree_.processes().contains(m.first); });
  bool admitted = false;
  for (const auto& [pid, process] : tree_.processes()) {
    Member& member = members_[pid];
    if (member.host_pid == pid && has_tracker(member)) continue;
    const auto group_pid = pid_in_namespace(pid);
    if (!group_pid) continue;
    const pid_t thread = process.threads.begin()->first;
    MemoryCapture::Injector injector{
        .create_uffd =
            [this, thread] {
              constexpr uint64_t kUserModeOnly = 1;  // UFFD_USER_MODE_ONLY
              return tree_.inject(thread, SYS_userfaultfd,
                                  {O_CLOEXEC | O_NONBLOCK | kUserModeOnly, 0, 0, 0, 0, 0});
            },
        .close_remote =
            [this, thread](int fd) {
              tree_.inject(thread, SYS_close, {static_cast<uint64_t>(fd), 0, 0, 0, 0, 0});
            }};
    member = Member{.host_pid = pid,
                    .group_pid = *group_pid,
                    .executions = process.executions,
                    .memory = MemoryCapture::create(pid, *group_pid, wanted_, injector),
                    .tracked_pages = 0,
                    .last = std::nullopt};
    tracker_in_use_ = member.memory->tracker();
    admitted = true;
  }
  return admitted;
}

std::vector<const TracedProcess*> GroupCapture::parents_first() const {
  std::vector<const TracedProcess*> order;
  const auto& all = tree_.processes();
  const auto root = all.find(tree_.root());
  if (root != all.end()) order.push_back(&root->second);
  std::map<pid_t, pid_t> parents;
  for (const auto& [pid, process] : all) {
    const auto stat = read_stat(pid);
    parents[pid] = stat ? stat->parent : 0;
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
  if (!leavers_are_gone(process)) {
    throw SysError("wait for a leaving thread", ETIMEDOUT, on_pid(process.pid));
  }
  const ProcessImage* previous = member.last ? &*member.last : nullptr;
  ProcessCaptureInput input{.host_pid = process.pid,
                            .host_tids = thread_ids(process),
                            .previous = previous,
                            .slow_state = is_slow(detail) || previous == nullptr,
                            .inject = {}};
  if (detail.inject) {
    input.inject = [this](pid_t tid, long number, std::array<uint64_t, 6> arguments,
                          std::vector<uint8_t>* data) {
      return tree_.inject(tid, number, arguments, data);
    };
  }
  auto image = capture_process(input);
  if (!image) return std::nullopt;
  auto mappings = read_mappings(process.pid, previous, detail);
  if (!mappings) return std::nullopt;
  image->mappings = std::move(*mappings);
  return image;
}

// Flags of mappings that the kernel itself tells cost nothing; where it does not, /proc/PID/smaps
// costs 18 ms a GiB.
std::optional<std::vector<MappingImage>> GroupCapture::read_mappings(pid_t host_pid,
                                                                     const ProcessImage* previous,
                                                                     const StateDetail& detail) {
  static const std::vector<MappingImage> kNone;
  const bool first = previous == nullptr || detail.refusals != nullptr;
  if (!first && (detail.slow_state || detail.last)) {
    KernelReader* const reader = KernelReader::instance();
    const auto bits = reader ? reader->read_mappings(host_pid) : std::nullopt;
    auto mappings = bits ? read_memory_map(host_pid, *bits, detail.slow_state) : std::nullopt;
    if (mappings) return mappings;
  }
  return read_memory_map(host_pid, previous ? previous->mappings : kNone,
                         first || detail.slow_state || detail.last, detail.refusals);
}

GroupImage GroupCapture::capture_state(const StateDetail& detail) {
  GroupImage image;
  for (const TracedProcess* process : parents_first()) {
    const auto found = members_.find(process->pid);
    if (found == members_.end()) {
      const auto group_pid = pid_in_namespace(process->pid);
      if (!group_pid) continue;
      members_[process->pid] = Member{.host_pid = process->pid,
                                      .group_pid = *group_pid,
                                      .executions = process->executions,
                                      .memory = nullptr,
                                      .tracked_pages = 0,
                                      .last = std::nullopt};
    }
    Member& member = members_[process->pid];
    if (member.executions != process->executions) member.last.reset();
    auto captured = capture_member(member, *process, detail);
    if (!captured) continue;
    image.processes.push_back(*captured);
    member.last = std::move(*captured);
  }
  fill_parents(image);
  fill_shared_objects(image, WhenGone::kThrow);
  if (detail.unseen_ends) find_zombies();
  fill_zombies(image);
  DescriptorCaptureInput input = descriptor_input(image);
  input.refusals = detail.refusals;
  input.with_content = detail.with_content;
  descriptors_->capture(input, image);
  return image;
}

void GroupCapture::fill_parents(GroupImage& image) const {
  for (ProcessImage& process : image.processes) {
    const pid_t host = host_pid_of(process.pid);
    const auto stat = read_stat(host);
    process.parent = 0;
    if (!stat || host == tree_.root()) continue;
    const auto parent = members_.find(stat->parent);
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

// Called when the last thread is let go, which may be before it is a zombie.
void GroupCapture::note_gone(pid_t host_pid, int wait_status) {
  const auto stat = read_stat(host_pid);
  if (!stat) return;
  const auto parent = members_.find(stat->parent);
  const auto ids = innermost_ids(host_pid);
  if (parent == members_.end() || !ids) return;
  zombies_[host_pid] = {.pid = ids->pid,
                        .parent = parent->second.group_pid,
                        .process_group = ids->process_group,
                        .session = ids->session,
                        .wait_status = wait_status,
                        .name = stat->name};
}

// Those that ended while nobody was attached.
void GroupCapture::find_zombies() {
  for (const auto& [pid, process] : tree_.processes()) {
    const std::string tasks = "/proc/" + std::to_string(pid) + "/task/";
    for (const auto& [tid, thread] : process.threads) {
      const auto children = read_proc(tasks + std::to_string(tid) + "/children");
      std::istringstream list(children.value_or(""));
      for (pid_t child = 0; list >> child;) {
        if (tree_.processes().contains(child) || zombies_.contains(child)) continue;
        const auto stat = read_stat(child);
        if (stat && stat->state == 'Z') note_gone(child, stat->exit_code);
      }
    }
  }
}

void GroupCapture::fill_zombies(GroupImage& image) {
  std::erase_if(zombies_, [this](const auto& entry) {
    const auto stat = read_stat(entry.first);
    const bool again_in_use = tree_.processes().contains(entry.first);
    return !stat || again_in_use || !members_.contains(stat->parent);
  });
  for (const auto& [pid, zombie] : zombies_) image.zombies.push_back(zombie);
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

GroupCapture::Member* GroupCapture::member_of(int32_t group_pid) {
  for (auto& [pid, member] : members_) {
    if (member.group_pid == group_pid) return &member;
  }
  return nullptr;
}

pid_t GroupCapture::host_pid_of(int32_t group_pid) const {
  for (const auto& [pid, member] : members_) {
    if (member.group_pid == group_pid) return pid;
  }
  return 0;
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
    if (mappings) process.mappings = std::move(*mappings);
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

std::vector<LazyRange> GroupCapture::copy_last(const GroupImage& image, PageSink& sink,
                                               uint64_t copy_pages_max) {
  const std::lock_guard lock(memory_mutex_);
  std::vector<LazyRange> lazy;
  std::vector<SharedObjectCapture::ProcessView> views;
  for (const ProcessImage& process : image.processes) {
    Member* member = member_of(process.pid);
    if (member == nullptr) continue;
    const bool tracked = has_tracker(*member);
    views.push_back({member->host_pid, &process, tracked ? member->memory.get() : nullptr});
    if (!tracked) {
      // Born, or another program, since the last epoch: no page of it was ever copied. What it
      // wrote into shared objects before its execve went with its page tables.
      if (member->memory) shared_->copy_all_again();
      shared_->note_exit(member->host_pid, nullptr);
      member->memory = MemoryCapture::create_for_last_copy(member->host_pid, member->group_pid);
    }
    const auto part = member->memory->copy_last(process.mappings, sink, copy_pages_max);
    lazy.insert(lazy.end(), part.begin(), part.end());
  }
  shared_->copy_changed(views, image.shared_objects, sink);
  return lazy;
}

}  // namespace replpage
