#include "core/base/procfs.h"

#include <dirent.h>
#include <fcntl.h>

#include <algorithm>
#include <charconv>
#include <climits>
#include <memory>

#include "core/base/sys_error.h"

namespace replpage {
namespace {

bool gone(int error) { return error == ENOENT || error == ESRCH; }

}  // namespace

std::optional<std::string> read_proc(const std::string& path) {
  UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.valid()) {
    if (gone(errno)) return std::nullopt;
    throw SysError::from_errno("open", on_path(path));
  }
  std::string text;
  for (size_t size = 0;;) {
    text.resize(size + 16384);
    const ssize_t got = ::read(fd.get(), text.data() + size, 16384);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0 && gone(errno)) return std::nullopt;
    if (got < 0) throw SysError::from_errno("read", on_path(path));
    size += static_cast<size_t>(got);
    if (got == 0) {
      text.resize(size);
      return text;
    }
  }
}

std::optional<std::string> read_link(const std::string& path) {
  char target[PATH_MAX];
  const ssize_t size = ::readlink(path.c_str(), target, sizeof target);
  if (size >= 0) return std::string(target, static_cast<size_t>(size));
  if (gone(errno)) return std::nullopt;
  throw SysError::from_errno("readlink", on_path(path));
}

std::optional<std::vector<int>> numeric_entries(const std::string& path) {
  struct Close {
    void operator()(DIR* d) const { ::closedir(d); }
  };
  std::unique_ptr<DIR, Close> dir(::opendir(path.c_str()));
  if (!dir) {
    if (gone(errno)) return std::nullopt;
    throw SysError::from_errno("opendir", on_path(path));
  }
  std::vector<int> numbers;
  while (const dirent* entry = ::readdir(dir.get())) {
    const std::string_view name(entry->d_name);
    int number = 0;
    const auto [end, bad] = std::from_chars(name.data(), name.data() + name.size(), number);
    if (bad == std::errc() && end == name.data() + name.size()) numbers.push_back(number);
  }
  std::sort(numbers.begin(), numbers.end());
  return numbers;
}

std::vector<pid_t> children_of(pid_t pid, pid_t tid) {
  std::vector<pid_t> children;
  const auto text =
      read_proc("/proc/" + std::to_string(pid) + "/task/" + std::to_string(tid) + "/children");
  if (!text) return children;
  const char* const end = text->data() + text->size();
  for (const char* at = text->data(); at < end; ++at) {
    pid_t child = 0;
    const auto [next, bad] = std::from_chars(at, end, child);
    if (bad != std::errc()) break;
    children.push_back(child);
    at = next;
  }
  return children;
}

std::optional<std::string_view> field_of(std::string_view text, std::string_view key) {
  for (size_t at = 0; at < text.size();) {
    size_t end = text.find('\n', at);
    if (end == std::string_view::npos) end = text.size();
    std::string_view line = text.substr(at, end - at);
    if (line.size() > key.size() && line.starts_with(key) && line[key.size()] == ':') {
      line.remove_prefix(key.size() + 1);
      const size_t first = line.find_first_not_of(" \t");
      return first == std::string_view::npos ? std::string_view() : line.substr(first);
    }
    at = end + 1;
  }
  return std::nullopt;
}

UniqueFd open_path(const std::string& path, int flags, int mode) {
  UniqueFd fd(::open(path.c_str(), flags | O_CLOEXEC, mode));
  if (!fd.valid()) throw SysError::from_errno("open", on_path(path));
  return fd;
}

}  // namespace replpage
