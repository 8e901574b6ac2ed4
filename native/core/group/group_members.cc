// Who belongs to a group: processes that are new, grew, executed another program or ended.
#include <fcntl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <algorithm>
#include <csignal>
#include <set>

#include "core/base/proc_stat.h"
#include "core/base/procfs.h"
#include "core/base/sys_error.h"
#include "core/group/group_capture.h"
#include "core/image/kernel_reader.h"
#include "core/memory/resident_pages.h"

namespace replpage {
namespace {

// A new process with no more pages of its own than this is copied whole under freeze (some 300 us):
// most end before the next epoch, and a tracker is made by injection.
constexpr uint64_t kYoungPagesMax = 256;

// Ends that are remembered without a look whether anyone still waits for them.
constexpr size_t kEndedUnchecked = 256;

constexpr unsigned kExiting = 0x4;  // PF_EXITING of include/linux/sched.h

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

uint64_t own_pages(pid_t pid) { return resident_pages(pid).own; }

}  // namespace

// 0 when it is gone.
pid_t GroupCapture::parent_of(pid_t host_pid) {
  const auto stat = ProcStat::of(host_pid);
  return stat ? static_cast<pid_t>((*stat)[ProcStat::kParent]) : 0;
}

// A tracker serves one address space: after an execve it knows nothing. A kill on the way out of
// execve comes before the tracer hears of it.
bool GroupCapture::is_same(const Member& member, const TracedProcess& process) {
  return member.executions == process.executions &&
         (!member.memory || member.memory->serves_process());
}

// Whether it needs a tracker before an epoch: not while it may well end before the next one.
bool GroupCapture::is_new(const TracedProcess& process) const {
  const auto found = members_.find(process.pid);
  const bool known = found != members_.end() && is_same(found->second, process);
  if (known && found->second.memory) return false;
  // Without the kernel reader some of its state is known by injection only.
  if (KernelReader::instance() == nullptr) return true;
  return (known && found->second.last) || own_pages(process.pid) > kYoungPagesMax;
}

bool GroupCapture::has_new() const {
  const auto& all = tree_.processes();
  return std::any_of(all.begin(), all.end(), [this](const auto& e) { return is_new(e.second); });
}

void GroupCapture::forget_gone() {
  std::erase_if(members_, [this](const auto& m) { return !tree_.processes().contains(m.first); });
}

GroupCapture::Member* GroupCapture::known_member(const TracedProcess& process) {
  const auto found = members_.find(process.pid);
  if (found != members_.end() && is_same(found->second, process)) return &found->second;
  const auto group_pid = pid_in_namespace(process.pid);
  if (!group_pid) return nullptr;
  // What was known of another program's memory is worth nothing now.
  if (found != members_.end()) note_execution(process.pid);
  Member& member = members_[process.pid];
  member = {};
  member.host_pid = process.pid;
  member.group_pid = *group_pid;
  member.executions = process.executions;
  return &member;
}

void GroupCapture::admit(Member& member, pid_t thread) {
  const MemoryCapture::Injector injector{
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
  member.memory = MemoryCapture::create(member.host_pid, member.group_pid, wanted_, injector);
  tracker_in_use_ = member.memory->tracker();
}

bool GroupCapture::admit_new() {
  const std::lock_guard lock(memory_mutex_);
  forget_gone();
  bool admitted = false;
  for (const auto& [pid, process] : tree_.processes()) {
    if (!is_new(process)) continue;
    Member* const member = known_member(process);
    if (member == nullptr) continue;
    if (!member->asked) member->last.reset();  // all of its state is to be asked for
    admit(*member, process.threads.begin()->first);
    admitted = true;
  }
  return admitted;
}

void GroupCapture::admit_grown(const GroupImage& image) {
  const std::lock_guard lock(memory_mutex_);
  const auto shares = [](const MappingImage& mapping) {
    return mapping.kind == MappingKind::kSharedObject || mapping.kind == MappingKind::kMemfdPrivate;
  };
  for (const ProcessImage& process : image.processes) {
    Member* const member = member_of(process.pid);
    if (member == nullptr || member->memory) continue;
    const bool sharing = std::any_of(process.mappings.begin(), process.mappings.end(), shares);
    if (sharing || own_pages(member->host_pid) > kYoungPagesMax) {
      admit(*member, process.threads.front().host_tid);
    }
  }
}

// Those without a tracker. Nothing is remembered: one that lives on is copied once more when it
// gets its tracker.
void GroupCapture::copy_young(const GroupImage& image, PageSink& sink) {
  for (const ProcessImage& process : image.processes) {
    const Member* const member = member_of(process.pid);
    if (member == nullptr || member->memory) continue;
    MemoryCapture::create_for_last_copy(member->host_pid, member->group_pid)
        ->copy_last(process.mappings, sink, UINT64_MAX);
  }
}

std::vector<pid_t> GroupCapture::host_pids() const {
  std::vector<pid_t> pids;
  for (const auto& [pid, member] : members_) pids.push_back(pid);
  return pids;
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

void GroupCapture::note_exit(pid_t host_pid) {
  if (!has_shared_) return;
  // The worker may be copying, and this thread waits for nobody.
  const std::unique_lock lock(memory_mutex_, std::try_to_lock);
  if (!lock.owns_lock()) {
    shared_unseen_ = true;
    return;
  }
  const auto member = members_.find(host_pid);
  shared_->note_exit(host_pid, member == members_.end() ? nullptr : member->second.memory.get());
}

void GroupCapture::note_execution(pid_t /*host_pid*/) {
  if (has_shared_) shared_unseen_ = true;
}

// Called when the last thread is let go, which may be before it is a zombie. Looked at when a
// parent is captured that has not waited for it: most have by then.
void GroupCapture::note_gone(pid_t host_pid, int wait_status) {
  ended_.emplace_back(host_pid, wait_status);
  if (ended_.size() <= kEndedUnchecked) return;
  const auto oldest = ended_.front();
  ended_.pop_front();
  if (ProcStat::of(oldest.first)) ended_.push_back(oldest);
}

// A descendant that stands at its exit stops, but not because it was killed along with the root,
// has ended for all that the group knows.
bool GroupCapture::ends_by_itself(const TracedProcess& process) const {
  return process.pid != tree_.root() &&
         std::all_of(process.threads.begin(), process.threads.end(), [](const auto& entry) {
           const TracedThread& thread = entry.second;
           const bool killed =
               WIFSIGNALED(thread.exit_code) && WTERMSIG(thread.exit_code) == SIGKILL;
           return thread.stop == StopKind::kExit && !killed;
         });
}

// Whether a process without a known end is ending shows in its flags only. One whose end is known
// may have been let go from its exit stop just now.
bool GroupCapture::add_zombie(GroupImage& image, pid_t host_pid, std::optional<int> wait_status) {
  const auto stat = ProcStat::of(host_pid);
  if (!stat || (!wait_status && ((*stat)[ProcStat::kFlags] & kExiting) == 0)) return false;
  const auto parent = members_.find(static_cast<pid_t>((*stat)[ProcStat::kParent]));
  const auto ids = innermost_ids(host_pid);
  if (parent == members_.end() || !ids) return false;
  image.zombies.push_back(
      {.pid = ids->pid,
       .parent = parent->second.group_pid,
       .process_group = ids->process_group,
       .session = ids->session,
       .wait_status = wait_status.value_or(static_cast<int>((*stat)[ProcStat::kExitCode])),
       .name = stat->name()});
  return true;
}

// With `unseen_ends` all children are looked at, not only those that nobody followed.
void GroupCapture::fill_zombies(GroupImage& image, bool unseen_ends) {
  std::erase_if(ended_, [](const auto& entry) { return !ProcStat::of(entry.first); });
  std::set<pid_t> told;
  for (const auto& [pid, wait_status] : ended_) {
    const bool lives = tree_.processes().contains(pid);
    if (!lives && told.insert(pid).second) add_zombie(image, pid, wait_status);
  }
  for (const auto& [pid, process] : tree_.processes()) {
    if (ends_by_itself(process)) {
      note_exit(pid);
      add_zombie(image, pid, process.threads.begin()->second.exit_code);
      continue;
    }
    const bool followed = tree_.follows_all_children(pid);
    if (followed && !unseen_ends) continue;
    // What unseen children wrote shows nowhere.
    if (!followed && has_shared_) shared_unseen_ = true;
    for (const auto& [tid, thread] : process.threads) {
      for (const pid_t child : children_of(pid, tid)) {
        // Remembered: the next capture does not look at the children of those that are followed.
        const bool found = !tree_.processes().contains(child) && told.insert(child).second &&
                           add_zombie(image, child, std::nullopt);
        if (found) ended_.emplace_back(child, std::nullopt);
      }
    }
  }
}

}  // namespace replpage
