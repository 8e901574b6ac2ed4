#include "core/restore/table_installer.h"

#include <fcntl.h>
#include <linux/close_range.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/syscall.h>

#include <algorithm>
#include <iterator>

#include "core/base/sys_error.h"

namespace replpage {
namespace {

// Data of a batch is limited; so many bytes leave room for one operation more.
constexpr size_t kBatchDataMax = kStubDataBytes / 2;
constexpr size_t kBatchOperationsMax = 1500;

// While descriptors are moved into place, numbers beyond the program's limit are in use.
class RaisedFileLimit {
 public:
  RaisedFileLimit(pid_t pid, rlim_t least) : pid_(pid) {
    if (::prlimit(pid_, RLIMIT_NOFILE, nullptr, &before_) != 0) {
      throw SysError::from_errno("read the descriptor limit", on_pid(pid_));
    }
    if (before_.rlim_cur >= least) return;
    const rlimit raised{least, std::max(least, before_.rlim_max)};
    if (::prlimit(pid_, RLIMIT_NOFILE, &raised, nullptr) != 0) {
      throw SysError::from_errno("raise the descriptor limit", on_pid(pid_));
    }
    raised_ = true;
  }
  ~RaisedFileLimit() {
    if (raised_) ::prlimit(pid_, RLIMIT_NOFILE, &before_, nullptr);
  }
  RaisedFileLimit(const RaisedFileLimit&) = delete;
  RaisedFileLimit& operator=(const RaisedFileLimit&) = delete;

 private:
  pid_t pid_;
  rlimit before_{};
  bool raised_ = false;
};

}  // namespace

void TableInstaller::install() {
  sort_watches();
  find_lowest();
  const auto& descriptors = image_.file_tables[table_].descriptors;
  const int numbers = descriptors.empty() ? 0 : descriptors.back().fd + 1;
  const RaisedFileLimit limit(
      process_.pid(), descriptor_room(image_, table_) + static_cast<rlim_t>(lowest_ - numbers));
  receive_files();
  SyscallBatch batch;
  add_removals(batch);
  add_detours(batch);
  add_numbers(batch);
  add_watches(batch);
  add_owners(batch);
  run(batch);
}

void TableInstaller::run(SyscallBatch& batch) const {
  if (!batch.empty()) process_.run(batch);
  batch = {};
}

bool TableInstaller::has(int fd, uint32_t position) const {
  const auto& descriptors = image_.file_tables[table_].descriptors;
  const auto at =
      std::lower_bound(descriptors.begin(), descriptors.end(), fd,
                       [](const DescriptorImage& d, int wanted) { return d.fd < wanted; });
  return at != descriptors.end() && at->fd == fd && at->open_file == position;
}

int TableInstaller::final_number(uint32_t position) const {
  for (const DescriptorImage& descriptor : image_.file_tables[table_].descriptors) {
    if (descriptor.open_file == position) return descriptor.fd;
  }
  return -1;
}

// A handed epoll goes on as it is, with two exceptions: a signalfd tells of the signals of whoever
// added it, so it is added again; and what is replaced by another file is watched anew.
void TableInstaller::sort_watches() {
  for (const uint32_t position : charge_) {
    const OpenFileImage& epoll = image_.open_files[position];
    if (epoll.kind != OpenFileKind::kEpoll) continue;
    const bool handed = files_.at(position).handed;
    for (const EpollWatch& watch : epoll.watches) {
      if (watch.target == kNoOpenFile) continue;
      const ReadyFile& target = files_.at(watch.target);
      if (target.fd < 0) continue;
      const bool signals = image_.open_files[watch.target].kind == OpenFileKind::kSignalFd;
      if (handed && !signals && target.handed) continue;
      if (handed && (target.handed || target.watched_old >= 0))
        removed_.push_back({position, watch});
      (has(watch.fd, watch.target) ? straight_ : detours_).push_back({position, watch});
    }
  }
}

// Files are received above every number that will be set.
void TableInstaller::find_lowest() {
  const auto& descriptors = image_.file_tables[table_].descriptors;
  if (!descriptors.empty()) lowest_ = descriptors.back().fd + 1;
  for (const auto* list : {&removed_, &detours_}) {
    for (const OldWatch& old : *list) lowest_ = std::max(lowest_, old.watch.fd + 1);
  }
}

void TableInstaller::receive_files() {
  std::vector<int> fds;
  std::vector<int*> places;
  numbers_.assign(image_.open_files.size(), -1);
  old_numbers_.assign(image_.open_files.size(), -1);
  const auto want = [&](int fd, int& place) {
    if (fd < 0 || place != -1) return;
    place = -2;
    fds.push_back(fd);
    places.push_back(&place);
  };
  const auto& descriptors = image_.file_tables[table_].descriptors;
  for (const DescriptorImage& descriptor : descriptors) {
    want(files_.at(descriptor.open_file).fd, numbers_[descriptor.open_file]);
  }
  for (const OldWatch& old : detours_) {
    want(files_.at(old.watch.target).fd, numbers_[old.watch.target]);
  }
  for (const OldWatch& old : removed_) {
    const ReadyFile& file = files_.at(old.watch.target);
    if (file.handed) {
      want(file.fd, numbers_[old.watch.target]);
    } else {
      want(file.watched_old, old_numbers_[old.watch.target]);
    }
  }
  const std::vector<int> received = process_.receive(fds, lowest_);
  for (size_t i = 0; i < received.size(); ++i) *places[i] = received[i];
}

void TableInstaller::add_watch(SyscallBatch& batch, int epoll, const EpollWatch& watch,
                               bool must_succeed) const {
  epoll_event event{};
  event.events = watch.events;
  event.data.u64 = watch.data;
  const uint64_t at = batch.put_value(event);
  batch.add("watch a descriptor by epoll", SYS_epoll_ctl,
            {epoll, EPOLL_CTL_ADD, watch.fd, BatchArgument::data(at)}, must_succeed);
}

// epoll knows a watch by open file and number, so the old file gets that number for a moment.
void TableInstaller::add_removals(SyscallBatch& batch) const {
  for (const OldWatch& old : removed_) {
    const uint32_t target = old.watch.target;
    const int number = files_.at(target).handed ? numbers_[target] : old_numbers_[target];
    batch.add("name a watched descriptor", SYS_dup3, {number, old.watch.fd, O_CLOEXEC});
    batch.add("remove a watch", SYS_epoll_ctl,
              {number_of(old.epoll), EPOLL_CTL_DEL, old.watch.fd, 0}, false);
  }
}

void TableInstaller::add_detours(SyscallBatch& batch) const {
  for (const OldWatch& old : detours_) {
    batch.add("name a watched descriptor", SYS_dup3,
              {number_of(old.watch.target), old.watch.fd, O_CLOEXEC});
    add_watch(batch, number_of(old.epoll), old.watch, false);
  }
}

void TableInstaller::add_numbers(SyscallBatch& batch) const {
  int next = 0;
  for (const DescriptorImage& descriptor : image_.file_tables[table_].descriptors) {
    if (descriptor.fd > next) {
      batch.add("close descriptors", SYS_close_range, {next, descriptor.fd - 1, 0});
    }
    batch.add(
        "install a descriptor", SYS_dup3,
        {number_of(descriptor.open_file), descriptor.fd, descriptor.close_on_exec ? O_CLOEXEC : 0});
    next = descriptor.fd + 1;
  }
  batch.add("close descriptors", SYS_close_range, {next, ~0U, 0});
}

void TableInstaller::add_watches(SyscallBatch& batch) const {
  for (const OldWatch& old : straight_) {
    if (batch.data().size() > kBatchDataMax || batch.operations().size() > kBatchOperationsMax) {
      // Numbers are final by now, so that another batch can go on.
      process_.run(batch);
      batch = {};
    }
    // What replaces a standard stream may be a file that epoll does not watch (EPERM).
    const bool stream = image_.open_files[old.watch.target].kind == OpenFileKind::kOutsideStream ||
                        image_.open_files[old.watch.target].outside;
    add_watch(batch, final_number(old.epoll), old.watch, !stream);
  }
}

// Who gets SIGIO is a process, and a handed file still names the dying one.
void TableInstaller::add_owners(SyscallBatch& batch) const {
  for (const uint32_t position : charge_) {
    const OpenFileImage& file = image_.open_files[position];
    if (file.owner_pid == 0 && file.owner_signal == 0) continue;
    const int number = final_number(position);
    if (file.owner_signal != 0) {
      batch.add("set the signal of a descriptor", SYS_fcntl, {number, F_SETSIG, file.owner_signal});
    }
    if (file.owner_pid == 0) continue;
    const f_owner_ex owner{static_cast<__pid_type>(file.owner_type), file.owner_pid};
    const uint64_t at = batch.put_value(owner);
    batch.add("set the owner of a descriptor", SYS_fcntl,
              {number, F_SETOWN_EX, BatchArgument::data(at)});
    if ((file.flags & O_ASYNC) == 0) continue;
    constexpr uint32_t kStatus = O_APPEND | O_NONBLOCK | O_DIRECT | O_NOATIME | O_ASYNC;
    batch.add("set status flags", SYS_fcntl, {number, F_SETFL, file.flags & kStatus});
  }
}

std::vector<QueuedLock> set_posix_locks(const GroupImage& image,
                                        std::span<ReplicaProcess* const> processes) {
  std::vector<QueuedLock> queued;
  for (ReplicaProcess* process : processes) {
    const auto state = std::find_if(image.processes.begin(), image.processes.end(),
                                    [&](const auto& p) { return p.pid == process->pid(); });
    if (state == image.processes.end()) continue;
    SyscallBatch batch;
    std::vector<QueuedLock> wanted;
    std::vector<uint32_t> seen;
    for (const DescriptorImage& descriptor : image.file_tables[state->file_table].descriptors) {
      const auto& locks = image.open_files[descriptor.open_file].locks;
      if (locks.empty() || std::count(seen.begin(), seen.end(), descriptor.open_file) != 0)
        continue;
      seen.push_back(descriptor.open_file);
      for (const FileLock& lock : locks) {
        if (lock.kind != FileLock::Kind::kPosix || lock.owner != process->pid()) continue;
        const uint64_t at = batch.put_value(lock_range(lock));
        batch.add("lock a file", SYS_fcntl, {descriptor.fd, F_SETLK, BatchArgument::data(at)},
                  false);
        wanted.push_back({process->pid(), descriptor.fd, lock});
      }
    }
    if (batch.empty()) continue;
    const BatchResult result = process->run(batch);
    for (size_t i = 0; i < wanted.size(); ++i) {
      const long outcome = result.results.at(i);
      if (outcome == -EAGAIN || outcome == -EACCES) {
        queued.push_back(wanted[i]);
      } else if (outcome < 0) {
        throw SysError("lock fd " + std::to_string(wanted[i].fd), static_cast<int>(-outcome),
                       on_pid(process->pid()));
      }
    }
  }
  return queued;
}

}  // namespace replpage
