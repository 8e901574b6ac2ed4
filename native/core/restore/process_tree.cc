#include "core/restore/process_tree.h"

#include <linux/sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>

#include "core/base/sys_error.h"
#include "core/restore/descriptors.h"
#include "core/restore/process_state.h"

namespace replpage {
namespace {

constexpr int32_t kKeeper = 0;

// Numbers that stand for something outside the PID namespace (0), or its pid 1, which is the
// keeper.
bool is_outside(int32_t id) { return id <= 1; }

// What a zombie's process executes to end as its image says (wait status of wait(2)).
SyscallBatch last_batch(const ZombieImage& zombie) {
  SyscallBatch batch;
  batch.add("process name", SYS_prctl,
            {PR_SET_NAME, BatchArgument::data(batch.put_text(zombie.name))}, false);
  if (WIFEXITED(zombie.wait_status)) {
    batch.add("exit", SYS_exit_group, {WEXITSTATUS(zombie.wait_status)});
    return batch;
  }
  const int signal = WTERMSIG(zombie.wait_status);
  const rlimit none{0, 0};
  batch.add("core limit", SYS_prlimit64,
            {0, int{RLIMIT_CORE}, BatchArgument::data(batch.put_value(none)), 0});
  const uint64_t mask = uint64_t{1} << (signal - 1);
  batch.add("signal mask", SYS_rt_sigprocmask,
            {SIG_UNBLOCK, BatchArgument::data(batch.put_value(mask)), 0, 8});
  batch.add("die by a signal", SYS_kill, {zombie.pid, signal});
  return batch;
}

}  // namespace

StubProcess* ProcessTree::find(int32_t pid) {
  const auto found = members_.find(pid);
  return found == members_.end() ? nullptr : found->second.process.get();
}

std::vector<StubProcess*> ProcessTree::processes() const {
  std::vector<StubProcess*> all;
  all.reserve(order_.size());
  for (const int32_t pid : order_) all.push_back(members_.at(pid).process.get());
  return all;
}

void ProcessTree::shape(const GroupImage& image) {
  image_ = &image;
  wanted_.clear();
  wanted_dead_.clear();
  order_.clear();
  for (const ProcessImage& process : image.processes) {
    wanted_[process.pid] = &process;
    order_.push_back(process.pid);
  }
  for (const ZombieImage& zombie : image.zombies) wanted_dead_[zombie.pid] = &zombie;
  end_others();
  create_missing();
  set_subreapers();
  create_zombies();
  join_groups();
  split_file_tables();
  make_descriptor_room();
  for (const ProcessImage& process : image.processes) at(process.pid).shape_threads(process);
}

int32_t ProcessTree::parent_of(const ProcessImage& image) const {
  return wanted_.contains(image.parent) ? image.parent : kKeeper;
}

// A number can have been given to another process since the last epoch.
bool ProcessTree::is_same(const Member& member, const ProcessImage& image) const {
  return member.parent == parent_of(image) &&
         (member.session == image.session || image.session == image.pid ||
          is_outside(image.session));
}

// Descendants first, so that each is reaped by its parent. A process whose parent ends goes to the
// next subreaper, as the kernel does it (find_new_reaper of kernel/exit.c).
void ProcessTree::end_others() {
  for (bool ended = true; ended;) {
    ended = false;
    for (const auto& [pid, member] : members_) {
      const auto wanted = wanted_.find(pid);
      // Judged when its parent is settled: a process that ends hands its children on.
      const bool parent_stays = member.parent == kKeeper || wanted_.contains(member.parent);
      if (wanted != wanted_.end() && (!parent_stays || is_same(member, *wanted->second))) continue;
      const auto dead = wanted_dead_.find(pid);
      end(pid, dead == wanted_dead_.end() ? nullptr : dead->second);
      ended = true;
      break;
    }
  }
  for (auto zombie = zombies_.begin(); zombie != zombies_.end();) {
    const auto& [pid, parent] = *zombie;
    if (wanted_dead_.contains(pid)) {
      ++zombie;
      continue;
    }
    reap(parent, pid);
    zombie = zombies_.erase(zombie);
  }
}

void ProcessTree::end(int32_t pid, const ZombieImage* zombie) {
  Member member = std::move(members_.at(pid));
  members_.erase(pid);
  if (zombie != nullptr) {
    member.process->end(last_batch(*zombie));
  } else {
    member.process->kill();
  }
  int32_t heir = member.parent;
  while (heir != kKeeper && !members_.at(heir).subreaper) heir = members_.at(heir).parent;
  for (auto& [other, child] : members_) {
    if (child.parent == pid) child.parent = heir;
  }
  for (auto& [other, parent] : zombies_) {
    if (parent == pid) parent = heir;
  }
  if (member.parent == kKeeper) return;  // reaped: its tracer is its parent
  if (zombie != nullptr) {
    zombies_[pid] = member.parent;
  } else {
    reap(member.parent, pid);
  }
}

void ProcessTree::reap(int32_t parent, int32_t pid) {
  if (parent == kKeeper) {
    ::waitpid(pid, nullptr, __WALL | WNOHANG);
    return;
  }
  SyscallBatch batch;
  batch.add("reap", SYS_wait4, {pid, 0, __WALL | WNOHANG, 0}, false);
  at(parent).run(batch);
}

void ProcessTree::create_missing() {
  for (const ProcessImage& image : image_->processes) {
    if (!members_.contains(image.pid)) create(image);
    Member& member = members_.at(image.pid);
    if (image.session != image.pid || member.session == image.pid) continue;
    SyscallBatch batch;
    batch.add("session", SYS_setsid);
    member.process->run(batch);
    member.session = member.group = image.pid;
  }
}

void ProcessTree::create(const ProcessImage& image) {
  const int32_t parent = parent_of(image);
  check_process_rights(image);
  Member member;
  member.process = create_in_session(image, parent);
  member.parent = parent;
  member.shares_files = shares_files(image);
  member.session = ::getsid(image.pid);
  members_.emplace(image.pid, std::move(member));
  create_early_children(image);
  SyscallBatch batch;
  add_build_state(image, batch);
  StubProcess& process = at(image.pid);
  if (!batch.empty()) process.run(batch);
  members_.at(image.pid).session = ::getsid(image.pid);
  members_.at(image.pid).group = ::getpgid(image.pid);
}

// A session is inherited when a process is created, and left only by setsid(2).
std::unique_ptr<StubProcess> ProcessTree::create_in_session(const ProcessImage& image,
                                                            int32_t parent) {
  const uint64_t flags = shares_files(image) ? CLONE_FILES : 0;
  const CloneRequest request{image.pid, flags, image.exit_signal};
  if (image.session == image.pid || is_outside(image.session) ||
      image.session == session_of(parent)) {
    return make(parent, request);
  }
  if (is_known_pid(image.session)) {
    throw SysError("rebuild session " + std::to_string(image.session), ENOTSUP, on_pid(image.pid));
  }
  // Its leader is gone or outside the group: a sibling with that number leads it for a moment.
  auto leader = make(parent, {image.session, flags, image.exit_signal});
  SyscallBatch session;
  session.add("session", SYS_setsid);
  leader->run(session);
  auto process = leader->clone({image.pid, flags | CLONE_PARENT, 0});
  leader->kill();
  if (parent != kKeeper) reap(parent, image.session);
  return process;
}

std::unique_ptr<StubProcess> ProcessTree::make(int32_t parent, const CloneRequest& request) {
  return parent == kKeeper ? StubProcess::spawn(request.pid) : at(parent).clone(request);
}

// Children that were forked before their parent became a session leader.
void ProcessTree::create_early_children(const ProcessImage& image) {
  if (image.session != image.pid) return;
  const int32_t inherited = session_of(image.pid);
  for (const ProcessImage& child : image_->processes) {
    if (child.parent == image.pid && child.session == inherited && child.session != image.pid &&
        !members_.contains(child.pid)) {
      create(child);
    }
  }
}

int32_t ProcessTree::session_of(int32_t pid) const {
  return pid == kKeeper ? ::getsid(0) : members_.at(pid).session;
}

bool ProcessTree::is_known_pid(int32_t pid) const {
  return wanted_.contains(pid) || wanted_dead_.contains(pid) || members_.contains(pid);
}

void ProcessTree::create_zombies() {
  for (const auto& [pid, zombie] : wanted_dead_) {
    if (zombies_.contains(pid) || !members_.contains(zombie->parent)) continue;
    auto process = at(zombie->parent).clone({pid, 0, SIGCHLD});
    SyscallBatch batch;
    if (zombie->session == pid) {
      batch.add("session", SYS_setsid, {}, false);
    } else if (!is_outside(zombie->process_group)) {
      batch.add("process group", SYS_setpgid,
                {0, zombie->process_group == pid ? 0 : zombie->process_group}, false);
    }
    if (!batch.empty()) process->run(batch);
    process->end(last_batch(*zombie));
    zombies_[pid] = zombie->parent;
  }
}

void ProcessTree::join_groups() {
  for (const ProcessImage& image : image_->processes) {
    Member& member = members_.at(image.pid);
    if (member.group == image.process_group || is_outside(image.process_group) ||
        image.session == image.pid) {
      continue;
    }
    join_group(image, member);
    member.group = image.process_group;
  }
}

void ProcessTree::join_group(const ProcessImage& image, Member& member) {
  SyscallBatch join;
  join.add("process group", SYS_setpgid,
           {0, image.process_group == image.pid ? 0 : image.process_group});
  const bool exists =
      image.process_group == image.pid ||
      std::any_of(members_.begin(), members_.end(), [&](const auto& entry) {
        return entry.second.group == image.process_group && entry.second.session == member.session;
      });
  if (exists || is_known_pid(image.process_group)) {
    member.process->run(join);
    return;
  }
  // The group's leader is gone or outside: a child with that number leads it for a moment.
  auto leader = member.process->clone({image.process_group, 0, SIGCHLD});
  SyscallBatch lead;
  lead.add("process group", SYS_setpgid, {0, 0});
  leader->run(lead);
  member.process->run(join);
  leader->kill();
  reap(image.pid, image.process_group);
}

bool ProcessTree::shares_files(const ProcessImage& image) const {
  const auto parent = wanted_.find(image.parent);
  return parent != wanted_.end() && parent->second->file_table == image.file_table;
}

// A table that was shared when the process was created can become its own, never the reverse.
void ProcessTree::split_file_tables() {
  for (const ProcessImage& image : image_->processes) {
    Member& member = members_.at(image.pid);
    if (!member.shares_files || shares_files(image)) continue;
    SyscallBatch batch;
    batch.add("unshare the file table", SYS_unshare, {CLONE_FILES});
    member.process->run(batch);
    member.process->forget_descriptor_room();
    member.shares_files = false;
  }
}

void ProcessTree::make_descriptor_room() {
  for (uint32_t table = 0; table < image_->file_tables.size(); ++table) {
    const auto first =
        std::find_if(image_->processes.begin(), image_->processes.end(),
                     [table](const ProcessImage& process) { return process.file_table == table; });
    if (first == image_->processes.end()) continue;
    const size_t room = descriptor_room(*image_, table);
    need_descriptor_limit(room);  // now, and not only at the promotion
    at(first->pid).make_descriptor_room(room);
  }
}

void ProcessTree::set_subreapers() {
  for (const ProcessImage& image : image_->processes) {
    Member& member = members_.at(image.pid);
    if (member.subreaper == image.child_subreaper) continue;
    SyscallBatch batch;
    batch.add("child subreaper", SYS_prctl, {PR_SET_CHILD_SUBREAPER, image.child_subreaper});
    member.process->run(batch);
    member.subreaper = image.child_subreaper;
  }
}

}  // namespace replpage
