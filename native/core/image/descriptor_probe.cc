#include "core/image/descriptor_probe.h"

#include <fcntl.h>
#include <linux/memfd.h>
#include <sys/socket.h>
#include <sys/statfs.h>
#include <sys/sysmacros.h>
#include <sys/timerfd.h>

#include <algorithm>
#include <ctime>
#include <utility>

#include "core/base/procfs.h"
#include "core/base/sys_error.h"
#include "core/image/file_content.h"
#include "core/image/socket_capture.h"

namespace replpage {
namespace {

// A descriptor that looks unchanged is looked at anew after so many epochs: socket options can
// change without a trace in fdinfo.
constexpr uint32_t kLookAgainEpochs = 32;
constexpr std::string_view kDeletedSuffix = " (deleted)";
constexpr std::string_view kMemfdPrefix = "/memfd:";

bool is_anonymous(const std::string& link) { return link.starts_with("anon_inode:"); }

FileIdentity identity_of(const struct stat& status) {
  return {.device = status.st_dev,
          .inode = status.st_ino,
          .size = static_cast<uint64_t>(status.st_size),
          .change_time_ns = status.st_ctim.tv_sec * 1'000'000'000 + status.st_ctim.tv_nsec};
}

enum class DeviceClass : uint8_t { kPlain, kTerminal, kOther };

bool is_message_queue(int fd) {
  constexpr long kMqueueMagic = 0x19800202;  // MQUEUE_MAGIC of ipc/mqueue.c
  struct statfs system {};
  return ::fstatfs(fd, &system) == 0 && system.f_type == kMqueueMagic;
}

// Documentation/admin-guide/devices.txt of the kernel.
DeviceClass classify_device(dev_t device) {
  const unsigned number = major(device);
  const unsigned which = minor(device);
  if (number == 1) {
    const bool plain = which == 3 || which == 5 || which == 7 || which == 8 || which == 9;
    return plain ? DeviceClass::kPlain : DeviceClass::kOther;  // null zero full random urandom
  }
  const bool terminal = number == 4 || (number >= 136 && number <= 143) ||
                        (number == 5 && (which == 0 || which == 1));
  return terminal ? DeviceClass::kTerminal : DeviceClass::kOther;
}

// Same inode means same open file and same fixed kind, so that the old link still holds.
bool link_holds(const DescriptorEntry& entry) {
  if (!entry.probed || entry.changed || entry.stale) return false;
  if (entry.link.starts_with('/')) return entry.file.kind == OpenFileKind::kDevice;
  return !is_anonymous(entry.link) || !entry.head.rest.empty();
}

}  // namespace

bool DescriptorProbe::knows_kind(const DescriptorEntry& entry) {
  return entry.probed && entry.link_inode == entry.head.inode &&
         entry.link_mount == entry.head.mount;
}

void DescriptorProbe::look_at(DescriptorTable& table, DescriptorEntry& entry, int32_t owner_pid) {
  if (std::exchange(entry.just_looked, true)) return;
  const bool asynchronous = (entry.head.flags & O_ASYNC) != 0;
  const bool holds = link_holds(entry);
  if (holds && entry.settled && !asynchronous && ++entry.age < kLookAgainEpochs) return;
  entry.age = 0;
  if (!holds) {
    std::string link = table.read_target(entry.fd);
    if (link != entry.link || !entry.probed) {
      entry.file = {};
      entry.link = std::move(link);
    }
    entry.link_inode = entry.head.inode;
    entry.link_mount = entry.head.mount;
    entry.stale = false;
  }
  OpenFileImage& file = entry.file;
  file.flags = entry.head.flags & ~static_cast<uint32_t>(O_CLOEXEC);
  file.position = entry.head.position;
  entry.refused.clear();
  entry.settled = true;
  if (entry.link.starts_with('/')) {
    read_path(table, entry);
  } else if (entry.link.starts_with("pipe:")) {
    file.kind = OpenFileKind::kPipe;
    file.object = entry.head.inode;
  } else if (entry.link.starts_with("socket:")) {
    read_open_socket(table, entry);
  } else if (entry.link.starts_with("pidfd:")) {
    read_pidfd(entry);
  } else if (is_anonymous(entry.link)) {
    read_anonymous(table, entry);
  } else {
    entry.refused = "a descriptor of this kind cannot be recreated";
  }
  bool lease = false;
  file.locks = parse_locks(entry.head.rest, owner_pid, lease);
  if (lease) entry.refused = "a lease is held on the file";
  // A socket's owner gets SIGURG without O_ASYNC, and a program may set the owner long before that.
  if (asynchronous || !entry.probed || ++entry.owner_age >= kLookAgainEpochs) {
    entry.owner_age = 0;
    if ((file.flags & O_PATH) == 0) read_owner(table, entry);
  }
  if (!entry.refused.empty()) {
    file.kind = OpenFileKind::kUnsupported;
    file.path = entry.link;
    entry.settled = false;
  }
  entry.probed = true;
}

void DescriptorProbe::read_path(DescriptorTable& table, DescriptorEntry& entry) {
  struct stat status {};
  if (!table.status_of(entry.fd, status)) {
    entry.refused = "its status cannot be read";
    return;
  }
  OpenFileImage& file = entry.file;
  if (S_ISCHR(status.st_mode) && (file.flags & O_PATH) == 0) {
    const DeviceClass device = classify_device(status.st_rdev);
    if (device == DeviceClass::kOther) {
      entry.refused = "a device has state that only its driver knows";
      return;
    }
    file.kind = OpenFileKind::kDevice;
    file.outside = device == DeviceClass::kTerminal;
    file.path = entry.link;
    return;
  }
  if (S_ISFIFO(status.st_mode) && (file.flags & O_PATH) == 0) {
    file.kind = OpenFileKind::kFifo;
    file.object = status.st_ino;
    file.path = entry.link;
    if (!leads_back(table, file.path, status)) entry.refused = "the pipe's name is gone";
    return;
  }
  if (entry.link.starts_with(kMemfdPrefix)) {
    file.kind = OpenFileKind::kMemfd;
    file.path = entry.link.substr(kMemfdPrefix.size());
    if (file.path.ends_with(kDeletedSuffix)) {
      file.path.resize(file.path.size() - kDeletedSuffix.size());
    }
    file.identity = identity_of(status);
    entry.settled = false;  // its size may change
    return;
  }
  read_regular(table, entry, status);
}

void DescriptorProbe::read_regular(DescriptorTable& table, DescriptorEntry& entry,
                                   const struct stat& status) {
  entry.settled = false;  // renamed, replaced or written without a trace in fdinfo
  OpenFileImage& file = entry.file;
  const bool block_device = S_ISBLK(status.st_mode) && (file.flags & O_PATH) == 0;
  if (block_device) {
    entry.refused = "a block device is open";
    return;
  }
  const bool known =
      entry.probed && file.identity.device == status.st_dev && file.identity.inode == status.st_ino;
  if (!known && S_ISREG(status.st_mode) && is_message_queue(table.duplicate(entry.fd).get())) {
    entry.refused = "message queues, and who is notified of them, cannot be rebuilt yet";
    return;
  }
  if (status.st_nlink == 0 && S_ISREG(status.st_mode) && (file.flags & O_PATH) == 0) {
    read_deleted(table, entry, status);
    return;
  }
  const FileIdentity now = identity_of(status);
  const bool same = entry.probed && file.kind == OpenFileKind::kRegular &&
                    file.identity.device == now.device && file.identity.inode == now.inode &&
                    file.path == entry.link;
  if (same) {
    file.identity = now;
    return;
  }
  file.kind = OpenFileKind::kRegular;
  file.path = entry.link;
  file.mode = status.st_mode;
  // Files of /proc and /sys are made up anew in the replica's namespace: nothing to compare.
  if (file.path.starts_with("/proc/") || file.path.starts_with("/sys/")) {
    file.identity = {};
    return;
  }
  if (!leads_back(table, file.path, status)) {
    entry.refused = "no path leads to this file any more";
    return;
  }
  file.identity = now;
}

void DescriptorProbe::read_deleted(DescriptorTable& table, DescriptorEntry& entry,
                                   const struct stat& status) {
  OpenFileImage& file = entry.file;
  const FileIdentity now = identity_of(status);
  if (entry.probed && file.kind == OpenFileKind::kDeletedFile && file.identity == now) return;
  file.kind = OpenFileKind::kDeletedFile;
  file.path = entry.link.ends_with(kDeletedSuffix)
                  ? entry.link.substr(0, entry.link.size() - kDeletedSuffix.size())
                  : entry.link;
  file.mode = status.st_mode & 07777;
  file.object = status.st_ino;
  file.identity = now;
  const UniqueFd copy = table.duplicate(entry.fd);
  if (!copy.valid()) return;
  auto content = read_whole_file(copy.get(), kDeletedFileBytesMax);
  if (content) {
    file.content = std::move(*content);
  } else {
    entry.refused =
        "it was deleted, and is longer than " + std::to_string(kDeletedFileBytesMax >> 20) + " MiB";
  }
}

void DescriptorProbe::read_anonymous(DescriptorTable& table, DescriptorEntry& entry) {
  OpenFileImage& file = entry.file;
  const std::string_view kind = std::string_view(entry.link).substr(sizeof "anon_inode:" - 1);
  if (kind == "[eventfd]") {
    file.kind = OpenFileKind::kEventFd;
    parse_eventfd(entry.head.rest, file);
  } else if (kind == "[timerfd]") {
    read_timer(table, entry);
  } else if (kind == "[signalfd]") {
    file.kind = OpenFileKind::kSignalFd;
    parse_signalfd(entry.head.rest, file);
  } else if (kind == "[eventpoll]") {
    file.kind = OpenFileKind::kEpoll;
    file.watches = parse_epoll_watches(entry.head.rest, entry.watched_inodes);
  } else if (kind == "inotify") {
    read_inotify(table, entry);
  } else if (kind == "[pidfd]") {
    read_pidfd(entry);
  } else {
    entry.refused = "its state cannot be read from outside";
  }
}

// No time is left of a timer that is off, and of one that has expired: a periodic one waits for a
// read(2) then, or a look by timerfd_gettime(2), to be set to its next beat (fs/timerfd.c). One
// whose interrupt comes just now has not even counted yet.
void DescriptorProbe::read_timer(DescriptorTable& table, DescriptorEntry& entry) {
  OpenFileImage& file = entry.file;
  const bool was_armed =
      entry.probed && file.kind == OpenFileKind::kTimerFd && file.timer_value_ns != 0;
  file.kind = OpenFileKind::kTimerFd;
  parse_timerfd(entry.head.rest, file);
  if (file.timer_value_ns != 0) return;
  if (file.timer_interval_ns != 0) return set_to_next_beat(table, entry);
  // Nothing waits for it: many timers may have gone off since the last epoch.
  if (was_armed && file.timer_ticks == 0 && table.reread(entry)) {
    parse_timerfd(entry.head.rest, file);
  }
}

void DescriptorProbe::set_to_next_beat(DescriptorTable& table, DescriptorEntry& entry) {
  constexpr int kLooks = 4;
  constexpr timespec kInterruptTime{.tv_sec = 0, .tv_nsec = 20'000};
  OpenFileImage& file = entry.file;
  const UniqueFd copy = table.duplicate(entry.fd);
  if (!copy.valid()) return;
  for (int looks = 0; looks < kLooks && file.timer_value_ns == 0; ++looks) {
    if (file.timer_ticks == 0) ::nanosleep(&kInterruptTime, nullptr);
    itimerspec left{};
    if (::timerfd_gettime(copy.get(), &left) != 0 || !table.reread(entry)) return;
    parse_timerfd(entry.head.rest, file);
  }
}

void DescriptorProbe::read_inotify(DescriptorTable& table, DescriptorEntry& entry) {
  OpenFileImage& file = entry.file;
  file.kind = OpenFileKind::kInotify;
  file.notify_watches.clear();
  for (const InotifyEntry& watch : parse_inotify(entry.head.rest)) {
    auto path = path_of_watch(table.host_pid(), watch);
    if (!path) {
      entry.refused = "what it watches cannot be found by path";
      return;
    }
    file.notify_watches.push_back({watch.descriptor, watch.mask, std::move(*path)});
  }
}

void DescriptorProbe::read_pidfd(DescriptorEntry& entry) {
  entry.file.kind = OpenFileKind::kPidFd;
  entry.settled = false;  // the process may end, which does show in fdinfo, or be reaped
  const int32_t pid = parse_pidfd(entry.head.rest);
  if (pid <= 0) {
    entry.file.target_pid = 0;
    return;
  }
  const auto target = group_pid_(pid);
  if (target) {
    entry.file.target_pid = *target;
  } else {
    entry.refused = "it refers to a process outside the group";
  }
}

void DescriptorProbe::read_open_socket(DescriptorTable& table, DescriptorEntry& entry) {
  OpenFileImage& file = entry.file;
  file.object = entry.head.inode;
  const UniqueFd copy = table.duplicate(entry.fd);
  if (!copy.valid()) return;
  const uint64_t peer = file.socket.peer_object;
  SocketFinding finding = read_socket(copy.get(), file);
  file.socket.peer_object = peer;
  if (file.kind == OpenFileKind::kUnixSocket && file.path.empty()) find_directory(table, file);
  entry.refused = std::move(finding.refused);
  entry.settled = finding.settled;
}

// A UNIX address may be a relative path, and the kernel does not tell relative to what: as a rule
// to where the process still is.
void DescriptorProbe::find_directory(const DescriptorTable& table, OpenFileImage& file) const {
  const std::string name = unix_path_of(file.socket.local_address);
  if (name.empty() || name.starts_with('/')) return;
  const std::string base = "/proc/" + std::to_string(table.host_pid());
  const auto directory = read_link(base + "/cwd");
  struct stat found {};
  if (directory && ::lstat((base + "/cwd/" + name).c_str(), &found) == 0 &&
      S_ISSOCK(found.st_mode)) {
    file.path = *directory;
  }
}

void DescriptorProbe::look_at_peer(DescriptorTable& table, DescriptorEntry& entry) {
  const std::string path = "/proc/" + std::to_string(table.host_pid()) + "/ns/net";
  const auto network = read_link(path);
  if (!network) return;
  auto& diag = diags_[*network];
  if (!diag) diag = std::make_unique<UnixDiag>(table.host_pid());
  const auto facts = diag->find(static_cast<uint32_t>(entry.head.inode));
  if (facts) read_unix_facts(*facts, entry.file);
}

void DescriptorProbe::read_owner(DescriptorTable& table, DescriptorEntry& entry) {
  const UniqueFd copy = table.duplicate(entry.fd);
  if (!copy.valid()) return;
  entry.file.owner_pid = 0;
  entry.file.owner_signal = std::max(::fcntl(copy.get(), F_GETSIG), 0);
  f_owner_ex owner{};
  if (::fcntl(copy.get(), F_GETOWN_EX, &owner) != 0 || owner.pid == 0) return;
  const auto pid = group_pid_(owner.pid);
  if (!pid) return;  // signals for a stranger: nobody of the group waits for them
  entry.file.owner_type = owner.type;
  entry.file.owner_pid = *pid;
}

// Paths of /proc/PID/fd start at the root of the mount namespace, not at that of the process. For
// another namespace than ours that is taken from the process's ancestor that entered it first (the
// keeper, of a promoted process).
bool DescriptorProbe::leads_back(const DescriptorTable& table, const std::string& path,
                                 const struct stat& status) const {
  const auto namespace_of = [](const std::string& pid) {
    return read_link("/proc/" + pid + "/ns/mnt");
  };
  std::string pid = std::to_string(table.host_pid());
  const auto theirs = namespace_of(pid);
  std::string root;
  if (theirs != namespace_of("self")) {
    for (;;) {
      const auto text = read_proc("/proc/" + pid + "/status");
      const auto parent = text ? field_of(*text, "PPid") : std::nullopt;
      if (!parent || *parent == "0" || namespace_of(std::string(*parent)) != theirs) break;
      pid = *parent;
    }
    root = "/proc/" + pid + "/root";
  }
  struct stat found {};
  if (::lstat((root + path).c_str(), &found) != 0) return false;
  return found.st_dev == status.st_dev && found.st_ino == status.st_ino;
}

}  // namespace replpage
