// What /proc/PID/fdinfo/N says about one descriptor.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "core/image/descriptor_image.h"

namespace replpage {

// First lines, the same for every kind (fs/proc/fd.c).
struct DescriptorHead {
  uint64_t position = 0;
  uint32_t flags = 0;  // O_*, with O_CLOEXEC when the descriptor closes on exec
  int32_t mount = 0;
  uint64_t inode = 0;
  std::string_view rest;  // kind-specific lines
};

// Throws FormatError when the kernel's text is not as expected.
DescriptorHead parse_descriptor_head(std::string_view text);

// "tfd:" lines. target stays kNoOpenFile; `inodes` gets the inode of each watched file.
std::vector<EpollWatch> parse_epoll_watches(std::string_view rest, std::vector<uint64_t>& inodes);

// Fills counter and semaphore. Kernels before 6.4 do not tell a semaphore from a plain counter.
void parse_eventfd(std::string_view rest, OpenFileImage& file);
void parse_timerfd(std::string_view rest, OpenFileImage& file);
void parse_signalfd(std::string_view rest, OpenFileImage& file);

// Value of "Pid:", as the reader of /proc sees it; -1 when that process has ended.
int32_t parse_pidfd(std::string_view rest);

// "lock:" lines. `lease` is set when one of them is a lease or a delegation.
std::vector<FileLock> parse_locks(std::string_view rest, int32_t owner, bool& lease);

struct InotifyEntry {
  int32_t descriptor = 0;
  uint32_t mask = 0;
  uint64_t inode = 0;
  uint64_t device = 0;  // as makedev(3) gives it
  int32_t handle_type = 0;
  Bytes handle;  // for open_by_handle_at(2)
};
std::vector<InotifyEntry> parse_inotify(std::string_view rest);

}  // namespace replpage
