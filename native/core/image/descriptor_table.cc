#include "core/image/descriptor_table.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/kcmp.h>
#include <sys/resource.h>
#include <sys/syscall.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <charconv>
#include <cstdio>

#include "core/base/procfs.h"
#include "core/base/sys_error.h"

namespace replpage {
namespace {

// Beyond so many of all processes fdinfo is opened anew each time (5 us more).
constexpr size_t kKeptOpenMax = 12'288;
std::atomic<size_t> kept_open{0};

// Leaves most of our own descriptors for other things.
size_t kept_open_max() {
  static const size_t most = [] {
    rlimit limit{};
    if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return size_t{0};
    return std::min<size_t>(limit.rlim_cur / 4, kKeptOpenMax);
  }();
  return most;
}

bool gone(int error) { return error == ENOENT || error == ESRCH || error == EBADF; }

struct Number {
  explicit Number(int value) { std::snprintf(text.data(), text.size(), "%d", value); }
  [[nodiscard]] const char* c_str() const { return text.data(); }
  std::array<char, 16> text{};
};

}  // namespace

void KeptInfo::open(UniqueFd file) noexcept {
  close();
  file_ = std::move(file);
  if (file_.valid()) ++kept_open;
}

void KeptInfo::close() noexcept {
  if (file_.valid()) --kept_open;
  file_.reset();
}

void KeptInfo::close_surplus() noexcept {
  if (kept_open > kept_open_max()) close();
}

DescriptorTable::DescriptorTable(pid_t host_pid) : host_pid_(host_pid) {
  const std::string base = "/proc/" + std::to_string(host_pid);
  pidfd_.reset(static_cast<int>(::syscall(SYS_pidfd_open, host_pid, 0)));
  if (!pidfd_.valid()) throw SysError::from_errno("pidfd_open", on_pid(host_pid));
  fd_directory_ = open_path(base + "/fd", O_RDONLY | O_DIRECTORY);
  info_directory_ = open_path(base + "/fdinfo", O_RDONLY | O_DIRECTORY);
}

bool DescriptorTable::refresh() {
  // The directory's size is the number of descriptors since Linux 6.2, before it is 0. As many as
  // last time, and all of those still there: then they are the same numbers.
  struct stat status {};
  if (::fstat(fd_directory_.get(), &status) != 0) return false;
  if (status.st_size != 0 && static_cast<size_t>(status.st_size) == entries_.size() &&
      reread_all()) {
    return true;
  }
  std::vector<int> numbers;
  if (!list_numbers(numbers)) return false;
  std::vector<std::unique_ptr<DescriptorEntry>> next;
  next.reserve(numbers.size());
  auto old = entries_.begin();
  for (const int number : numbers) {
    while (old != entries_.end() && (*old)->fd < number) ++old;
    if (old != entries_.end() && (*old)->fd == number) {
      next.push_back(std::move(*old++));
    } else {
      next.push_back(std::make_unique<DescriptorEntry>());
      next.back()->fd = number;
    }
    if (!read_info(*next.back())) next.pop_back();
  }
  entries_ = std::move(next);
  return true;
}

bool DescriptorTable::reread(DescriptorEntry& entry) const {
  const bool changed = entry.changed;
  const bool just_looked = entry.just_looked;
  if (!read_info(entry)) return false;
  entry.changed = changed;
  entry.just_looked = just_looked;
  return true;
}

bool DescriptorTable::reread_all() {
  return std::all_of(entries_.begin(), entries_.end(),
                     [this](const auto& entry) { return read_info(*entry); });
}

bool DescriptorTable::list_numbers(std::vector<int>& numbers) const {
  if (::lseek(fd_directory_.get(), 0, SEEK_SET) < 0) return false;
  alignas(dirent64) std::array<char, 32768> buffer;
  for (;;) {
    const long size = ::syscall(SYS_getdents64, fd_directory_.get(), buffer.data(), buffer.size());
    if (size < 0 && gone(errno)) return false;
    if (size < 0) throw SysError::from_errno("list descriptors", on_pid(host_pid_));
    if (size == 0) break;
    for (long at = 0; at < size;) {
      const auto* entry = reinterpret_cast<const dirent64*>(buffer.data() + at);
      at += entry->d_reclen;
      int number = 0;
      const char* end = entry->d_name + std::char_traits<char>::length(entry->d_name);
      if (std::from_chars(entry->d_name, end, number).ptr == end) numbers.push_back(number);
    }
  }
  std::sort(numbers.begin(), numbers.end());
  return true;
}

bool DescriptorTable::read_info(DescriptorEntry& entry) const {
  static thread_local std::vector<char> buffer(65536);
  if (!entry.info.file().valid()) {
    entry.info.open(
        UniqueFd(::openat(info_directory_.get(), Number(entry.fd).c_str(), O_RDONLY | O_CLOEXEC)));
    if (!entry.info.file().valid()) {
      if (gone(errno)) return false;
      throw SysError::from_errno("open fdinfo " + std::to_string(entry.fd), on_pid(host_pid_));
    }
  }
  size_t size = 0;
  for (;;) {
    const ssize_t got = ::pread(entry.info.file().get(), buffer.data() + size, buffer.size() - size,
                                static_cast<off_t>(size));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0 && gone(errno)) {
      entry.info.close();
      return false;
    }
    if (got < 0) throw SysError::from_errno("read fdinfo", on_pid(host_pid_));
    size += static_cast<size_t>(got);
    if (size < buffer.size()) break;  // a short read is the whole rest (fs/seq_file.c)
    buffer.resize(2 * buffer.size());
  }
  entry.info.close_surplus();
  const std::string_view text(buffer.data(), size);
  entry.changed = entry.text != text;
  entry.just_looked = false;
  if (entry.changed) {
    entry.text = text;
    entry.head = parse_descriptor_head(entry.text);
  }
  return true;
}

DescriptorEntry* DescriptorTable::find(int fd) {
  const auto at =
      std::lower_bound(entries_.begin(), entries_.end(), fd,
                       [](const auto& entry, int wanted) { return entry->fd < wanted; });
  return at != entries_.end() && (*at)->fd == fd ? at->get() : nullptr;
}

UniqueFd DescriptorTable::duplicate(int fd) const {
  UniqueFd copy(static_cast<int>(::syscall(SYS_pidfd_getfd, pidfd_.get(), fd, 0)));
  if (!copy.valid() && !gone(errno)) {
    throw SysError::from_errno("duplicate fd " + std::to_string(fd), on_pid(host_pid_));
  }
  return copy;
}

std::string DescriptorTable::read_target(int fd) const {
  std::array<char, 4097> target;
  const ssize_t size =
      ::readlinkat(fd_directory_.get(), Number(fd).c_str(), target.data(), target.size());
  if (size < 0 && gone(errno)) return {};
  if (size < 0) {
    throw SysError::from_errno("readlink fd " + std::to_string(fd), on_pid(host_pid_));
  }
  return {target.data(), static_cast<size_t>(size)};
}

bool DescriptorTable::status_of(int fd, struct stat& status) const {
  return ::fstatat(fd_directory_.get(), Number(fd).c_str(), &status, 0) == 0;
}

bool DescriptorTable::shares_with(const DescriptorTable& other) {
  if (unshared_.contains(other.host_pid_) || entries_.size() != other.entries_.size()) return false;
  const long order = ::syscall(SYS_kcmp, host_pid_, other.host_pid_, KCMP_FILES, 0, 0);
  if (order < 0) throw SysError::from_errno("kcmp", on_pid(host_pid_));
  if (order != 0) unshared_.insert(other.host_pid_);
  return order == 0;
}

}  // namespace replpage
