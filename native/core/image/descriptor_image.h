// Descriptors of a group: which numbers each file table has, and the open files behind them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/base/archive.h"

namespace replpage {

enum class OpenFileKind : uint8_t {
  kRegular = 1,      // regular file or directory by path
  kDeletedFile = 2,  // regular file without a name: content travels in `content`
  kDevice = 3,       // /dev/null, zero, full, random, urandom, tty, ptmx is refused
  kPipe = 4,         // one end; both ends share `object`
  kFifo = 5,         // named pipe by path
  kEventFd = 6,
  kTimerFd = 7,
  kSignalFd = 8,
  kEpoll = 9,
  kInotify = 10,
  kMemfd = 11,  // content is a SharedObjectImage; `object` holds its id
  kUnixSocket = 12,
  kTcpSocket = 13,
  kUdpSocket = 14,
  kOutsideStream = 15,  // standard output or error that leads outside the group: goes to --stdio
  kPidFd = 16,          // of a process of the group; `target_pid` 0: of one that has ended
  // Can be handed over, never recreated: `path` says what it is. protect refuses it; it may still
  // appear in a later epoch, which then cannot be promoted without the dying process.
  kUnsupported = 17,
  kNetlinkSocket = 18,
};

// Position of an EpollWatch whose open file no process of the group holds any more.
inline constexpr uint32_t kNoOpenFile = UINT32_MAX;

struct EpollWatch {
  int32_t fd = -1;
  uint32_t events = 0;
  uint64_t data = 0;
  uint32_t target = 0;  // position in GroupImage::open_files
  template <class A>
  void visit(A& a) {
    a(fd, events, data, target);
  }
};

struct InotifyWatch {
  int32_t descriptor = 0;
  uint32_t mask = 0;
  std::string path;
  template <class A>
  void visit(A& a) {
    a(descriptor, mask, path);
  }
};

struct FileLock {
  enum class Kind : uint8_t { kFlock = 1, kPosix = 2, kOpenFile = 3 };
  Kind kind = Kind::kFlock;
  bool exclusive = false;
  uint64_t start = 0, length = 0;  // length 0: to the end
  int32_t owner = 0;               // pid for kPosix
  template <class A>
  void visit(A& a) {
    a(kind, exclusive, start, length, owner);
  }
};

struct SocketOption {
  int32_t level = 0, name = 0;
  Bytes value;
  template <class A>
  void visit(A& a) {
    a(level, name, value);
  }
};

struct SocketState {
  int32_t domain = 0, type = 0, protocol = 0;
  bool listening = false, connected = false, shut_read = false, shut_write = false;
  int32_t backlog = 0;
  Bytes local_address, peer_address;  // sockaddr
  std::vector<SocketOption> options;
  uint64_t peer_object = 0;  // the other end of a pair inside the group, else 0
  // What a UNIX socket has received and not read: one piece of a stream, else messages. Of a pipe
  // in packet mode: its packets. UDP may lose what it had queued.
  std::vector<Bytes> queue;
  template <class A>
  void visit(A& a) {
    a(domain, type, protocol, listening, connected, shut_read, shut_write, backlog, local_address,
      peer_address, options, peer_object, queue);
  }
};

// What rule 2 compares before a promotion from an epoch that is not exact.
struct FileIdentity {
  uint64_t device = 0, inode = 0, size = 0;
  int64_t change_time_ns = 0;
  template <class A>
  void visit(A& a) {
    a(device, inode, size, change_time_ns);
  }
  bool operator==(const FileIdentity&) const = default;
};

// One open file description. Descriptors that share it (dup, fork) name the same position.
struct OpenFileImage {
  OpenFileKind kind = OpenFileKind::kRegular;
  uint32_t flags = 0;     // O_* as in fdinfo, without O_CLOEXEC
  uint64_t position = 0;  // bytes
  uint64_t object = 0;    // inode of a pipe or socket; shared object id of a memfd
  std::string path;       // of a UNIX socket: the directory that a relative address starts from
  // The other end is not in the group. Handed over as it is; recreated from an epoch as what its
  // program would see had the other end gone (end of file, ECONNRESET).
  bool outside = false;
  uint32_t mode = 0;  // of a deleted file; of a listening UNIX socket's file
  FileIdentity identity;
  Bytes content;           // pipe content, deleted file
  uint64_t counter = 0;    // eventfd
  bool semaphore = false;  // EFD_SEMAPHORE
  uint64_t signal_mask = 0;
  int32_t clock = 0;  // timerfd
  uint32_t timer_flags = 0;
  uint64_t timer_value_ns = 0, timer_interval_ns = 0, timer_ticks = 0;
  int32_t pipe_size = 0;
  int32_t owner_type = 0, owner_pid = 0, owner_signal = 0;  // F_SETOWN_EX, F_SETSIG
  int32_t target_pid = 0;                                   // pidfd
  std::vector<EpollWatch> watches;
  std::vector<InotifyWatch> notify_watches;
  std::vector<FileLock> locks;
  SocketState socket;
  template <class A>
  void visit(A& a) {
    a(kind, flags, position, object, path, outside, mode, identity, content, counter, semaphore,
      signal_mask, clock, timer_flags, timer_value_ns, timer_interval_ns, timer_ticks, pipe_size,
      owner_type, owner_pid, owner_signal, target_pid, watches, notify_watches, locks, socket);
  }
};

// A file that a process has mapped shared and writable: the mapping changes it without a
// descriptor.
struct MappedFileImage {
  std::string path;
  FileIdentity identity;
  // Whether writing through the mapping moves the change time: not on tmpfs.
  bool times_tell = true;
  template <class A>
  void visit(A& a) {
    a(path, identity, times_tell);
  }
};

struct DescriptorImage {
  int32_t fd = -1;
  bool close_on_exec = false;
  uint32_t open_file = 0;  // position in GroupImage::open_files
  template <class A>
  void visit(A& a) {
    a(fd, close_on_exec, open_file);
  }
};

// Processes that share a table (CLONE_FILES) name the same position.
struct FileTableImage {
  std::vector<DescriptorImage> descriptors;
  template <class A>
  void visit(A& a) {
    a(descriptors);
  }
};

}  // namespace replpage
