#include "core/image/descriptor_info.h"

#include <sys/sysmacros.h>

#include <charconv>
#include <cstring>

namespace replpage {
namespace {

std::string_view next_line(std::string_view& text) {
  const size_t end = text.find('\n');
  const std::string_view line = text.substr(0, end);
  text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
  return line;
}

void skip_blanks(std::string_view& text) {
  const size_t first = text.find_first_not_of(" \t(,");
  text.remove_prefix(first == std::string_view::npos ? text.size() : first);
}

template <class T>
bool take_number(std::string_view& text, T& value, int base) {
  skip_blanks(text);
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, base);
  if (error != std::errc()) return false;
  text.remove_prefix(static_cast<size_t>(end - text.data()));
  return true;
}

// Moves behind "key:" in the line; false when the line has no such key.
bool take_key(std::string_view& line, std::string_view key) {
  const size_t at = line.find(key);
  if (at == std::string_view::npos) return false;
  line.remove_prefix(at + key.size());
  return true;
}

template <class T>
T required(std::string_view& line, std::string_view key, int base = 10) {
  T value{};
  if (!take_key(line, key) || !take_number(line, value, base)) {
    throw FormatError("fdinfo has no " + std::string(key));
  }
  return value;
}

std::string_view take_word(std::string_view& text) {
  skip_blanks(text);
  const size_t end = text.find_first_of(" \t");
  const std::string_view word = text.substr(0, end);
  text.remove_prefix(word.size());
  return word;
}

uint64_t take_seconds(std::string_view line) {
  uint64_t seconds = 0;
  uint64_t nanoseconds = 0;
  if (!take_number(line, seconds, 10) || !take_number(line, nanoseconds, 10)) {
    throw FormatError("fdinfo has a bad timer value");
  }
  return seconds * 1'000'000'000u + nanoseconds;
}

}  // namespace

DescriptorHead parse_descriptor_head(std::string_view text) {
  DescriptorHead head;
  head.position = required<uint64_t>(text, "pos:");
  head.flags = required<uint32_t>(text, "flags:", 8);
  head.mount = required<int32_t>(text, "mnt_id:");
  std::string_view after = text;
  next_line(after);
  // "ino:" came with Linux 5.14.
  if (after.starts_with("ino:")) head.inode = required<uint64_t>(after, "ino:");
  next_line(after);
  head.rest = after;
  return head;
}

std::vector<EpollWatch> parse_epoll_watches(std::string_view rest, std::vector<uint64_t>& inodes) {
  std::vector<EpollWatch> watches;
  inodes.clear();
  while (!rest.empty()) {
    std::string_view line = next_line(rest);
    if (!line.starts_with("tfd:")) continue;
    EpollWatch watch;
    watch.fd = required<int32_t>(line, "tfd:");
    watch.events = required<uint32_t>(line, "events:", 16);
    watch.data = required<uint64_t>(line, "data:", 16);
    watch.target = kNoOpenFile;
    inodes.push_back(required<uint64_t>(line, "ino:", 16));
    watches.push_back(watch);
  }
  return watches;
}

void parse_eventfd(std::string_view rest, OpenFileImage& file) {
  std::string_view line = rest;
  file.counter = required<uint64_t>(line, "eventfd-count:", 16);
  line = rest;
  file.semaphore = line.find("eventfd-semaphore:") != std::string_view::npos &&
                   required<int32_t>(line, "eventfd-semaphore:") != 0;
}

void parse_timerfd(std::string_view rest, OpenFileImage& file) {
  while (!rest.empty()) {
    std::string_view line = next_line(rest);
    if (line.starts_with("clockid:")) file.clock = required<int32_t>(line, "clockid:");
    if (line.starts_with("ticks:")) file.timer_ticks = required<uint64_t>(line, "ticks:");
    if (line.starts_with("settime flags:")) {
      file.timer_flags = required<uint32_t>(line, "settime flags:", 8);
    }
    if (take_key(line, "it_value:")) file.timer_value_ns = take_seconds(line);
    if (take_key(line, "it_interval:")) file.timer_interval_ns = take_seconds(line);
  }
}

void parse_signalfd(std::string_view rest, OpenFileImage& file) {
  file.signal_mask = required<uint64_t>(rest, "sigmask:", 16);
}

int32_t parse_pidfd(std::string_view rest) { return required<int32_t>(rest, "Pid:"); }

// "lock:\t1: POSIX  ADVISORY  WRITE 4242 fe:00:1234 0 EOF" (fs/locks.c, lock_get_status).
std::vector<FileLock> parse_locks(std::string_view rest, int32_t owner, bool& lease) {
  std::vector<FileLock> locks;
  while (!rest.empty()) {
    std::string_view line = next_line(rest);
    if (!line.starts_with("lock:")) continue;
    line.remove_prefix(5);
    take_word(line);  // "1:"
    const std::string_view type = take_word(line);
    if (type == "LEASE" || type == "DELEG") {
      lease = true;
      continue;
    }
    FileLock lock;
    lock.kind = type == "FLOCK"    ? FileLock::Kind::kFlock
                : type == "OFDLCK" ? FileLock::Kind::kOpenFile
                                   : FileLock::Kind::kPosix;
    take_word(line);  // ADVISORY
    lock.exclusive = take_word(line) == "WRITE";
    take_word(line);  // pid
    take_word(line);  // device and inode
    uint64_t end = 0;
    if (!take_number(line, lock.start, 10)) throw FormatError("fdinfo has a bad lock");
    lock.length = take_number(line, end, 10) ? end - lock.start + 1 : 0;  // "EOF": to the end
    if (lock.kind == FileLock::Kind::kPosix) lock.owner = owner;
    locks.push_back(lock);
  }
  return locks;
}

std::vector<InotifyEntry> parse_inotify(std::string_view rest) {
  std::vector<InotifyEntry> entries;
  while (!rest.empty()) {
    std::string_view line = next_line(rest);
    if (!line.starts_with("inotify wd:")) continue;
    InotifyEntry entry;
    entry.descriptor = required<int32_t>(line, "wd:", 16);  // proc(5) says decimal, in vain
    entry.inode = required<uint64_t>(line, "ino:", 16);
    const auto device = required<uint32_t>(line, "sdev:", 16);
    entry.device = makedev(device >> 20, device & 0xfffff);  // the kernel's own dev_t layout
    entry.mask = required<uint32_t>(line, "mask:", 16);
    if (line.find("fhandle-bytes:") != std::string_view::npos) {
      const auto bytes = required<uint32_t>(line, "fhandle-bytes:", 16);
      entry.handle_type = required<int32_t>(line, "fhandle-type:", 16);
      if (!take_key(line, "f_handle:") || line.size() < 2 * size_t{bytes}) {
        throw FormatError("fdinfo has a bad file handle");
      }
      for (uint32_t i = 0; i < bytes; ++i) {
        std::string_view digits = line.substr(2 * size_t{i}, 2);
        uint8_t byte = 0;
        take_number(digits, byte, 16);
        entry.handle.push_back(byte);
      }
    }
    entries.push_back(std::move(entry));
  }
  return entries;
}

}  // namespace replpage
