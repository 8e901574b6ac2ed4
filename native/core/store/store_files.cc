#include "core/store/store_files.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>

#include "core/store/store_error.h"

namespace replpage {

std::string hex16(uint64_t number) {
  char text[20];
  std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(number));
  return text;
}

void see_changes(int file) {
  struct statx status {};
  (void)::statx(file, "", AT_EMPTY_PATH | AT_STATX_FORCE_SYNC, STATX_BASIC_STATS, &status);
}

std::optional<std::string> read_small_file(int directory, const std::string& name,
                                           const std::string& path, size_t bytes_max) {
  const UniqueFd file(
      ::openat(directory, name.c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC));
  if (!file.valid() && errno == ENOENT) return std::nullopt;
  if (!file.valid()) throw_store_error("open", path);
  std::string text(bytes_max, '\0');
  text.resize(read_at(file.get(), path, text.data(), text.size(), 0));
  return text;
}

size_t read_at(int file, const std::string& path, void* into, size_t size, uint64_t offset) {
  size_t done = 0;
  while (done < size) {
    const ssize_t got = ::pread(file, static_cast<char*>(into) + done, size - done,
                                static_cast<off_t>(offset + done));
    if (got == 0) break;
    if (got > 0) {
      done += static_cast<size_t>(got);
    } else if (errno != EINTR) {
      throw_store_error("read", path);
    }
  }
  return done;
}

}  // namespace replpage
