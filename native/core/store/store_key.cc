#include "core/store/store_key.h"

#include <fcntl.h>
#include <strings.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <cstring>

#include "core/base/crc32c.h"
#include "core/base/sys_error.h"
#include "core/base/unique_fd.h"

namespace replpage {
namespace {

constexpr size_t kTextLength = 2 * kStoreKeyBytes + 1 + 8;

std::string folder_of(const std::string& path) {
  const size_t slash = path.rfind('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

// Whole or not at all, whoever else makes it or dies meanwhile: a link to a finished file.
void make_file(const std::string& path) {
  std::array<uint8_t, 8> mark{};
  StoreKey key = StoreKey::random();
  if (::getrandom(mark.data(), mark.size(), 0) != static_cast<ssize_t>(mark.size())) {
    throw SysError::from_errno("getrandom");
  }
  uint64_t number = 0;
  std::memcpy(&number, mark.data(), sizeof number);
  const std::string fresh = path + ".new-" + std::to_string(number);
  const UniqueFd file(::open(fresh.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
  if (!file.valid()) throw SysError::from_errno("make the key file", on_path(fresh));
  const bool written =
      ::write(file.get(), key.bytes().data(), kStoreKeyBytes) == ssize_t{kStoreKeyBytes} &&
      ::fsync(file.get()) == 0;
  const int write_error = errno;
  const bool linked = written && (::link(fresh.c_str(), path.c_str()) == 0 || errno == EEXIST);
  const int link_error = errno;
  ::unlink(fresh.c_str());
  if (!written) throw SysError("write the key file", write_error, on_path(path));
  if (!linked) throw SysError("make the key file", link_error, on_path(path));
  const UniqueFd folder(::open(folder_of(path).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!folder.valid() || ::fsync(folder.get()) != 0) {
    throw SysError::from_errno("make the key file durable", on_path(path));
  }
}

uint8_t digit(char c) {
  if (c >= '0' && c <= '9') return static_cast<uint8_t>(c - '0');
  if (c >= 'a' && c <= 'f') return static_cast<uint8_t>(c - 'a' + 10);
  throw FormatError("a key has a character that is no hexadecimal digit");
}

}  // namespace

StoreKey StoreKey::load_or_make(const std::string& path) {
  try {
    return load(path);
  } catch (const SysError& error) {
    if (error.error() != ENOENT) throw;
  }
  make_file(path);
  return load(path);
}

StoreKey StoreKey::load(const std::string& path) {
  constexpr int kFlags = O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY;
  const UniqueFd file(::open(path.c_str(), kFlags));
  if (!file.valid()) throw SysError::from_errno("open the key file", on_path(path));
  struct stat status {};
  if (::fstat(file.get(), &status) != 0) throw SysError::from_errno("fstat", on_path(path));
  if (!S_ISREG(status.st_mode)) throw SysError("use the key file", EINVAL, on_path(path));
  if ((status.st_mode & 077) != 0 || (status.st_uid != ::geteuid() && status.st_uid != 0)) {
    throw SysError("use the key file, which others may read,", EACCES, on_path(path));
  }
  StoreKey key;
  uint8_t more = 0;
  if (::read(file.get(), key.bytes_.data(), kStoreKeyBytes) != ssize_t{kStoreKeyBytes} ||
      ::read(file.get(), &more, 1) != 0) {
    throw SysError("use the key file, which has not 32 bytes,", EINVAL, on_path(path));
  }
  return key;
}

StoreKey StoreKey::random() {
  StoreKey key;
  if (::getrandom(key.bytes_.data(), kStoreKeyBytes, 0) != ssize_t{kStoreKeyBytes}) {
    throw SysError::from_errno("getrandom");
  }
  return key;
}

StoreKey StoreKey::from_bytes(std::span<const uint8_t, kStoreKeyBytes> bytes) {
  StoreKey key;
  std::copy(bytes.begin(), bytes.end(), key.bytes_.begin());
  return key;
}

StoreKey StoreKey::from_text(std::string_view text) {
  if (text.size() != kTextLength || text[2 * kStoreKeyBytes] != '-') {
    throw FormatError("a key is 64 hexadecimal digits, a minus and 8 more");
  }
  StoreKey key;
  for (size_t i = 0; i < kStoreKeyBytes; ++i) {
    key.bytes_[i] = static_cast<uint8_t>(digit(text[2 * i]) << 4 | digit(text[2 * i + 1]));
  }
  uint32_t sum = 0;
  for (const char c : text.substr(2 * kStoreKeyBytes + 1)) sum = sum << 4 | digit(c);
  if (sum != crc32c(key.bytes_))
    throw FormatError("a key's checksum is wrong: a digit is not right");
  return key;
}

StoreKey::StoreKey(StoreKey&& other) noexcept : bytes_(other.bytes_) {
  ::explicit_bzero(other.bytes_.data(), other.bytes_.size());
}

StoreKey& StoreKey::operator=(StoreKey&& other) noexcept {
  if (this == &other) return *this;
  bytes_ = other.bytes_;
  ::explicit_bzero(other.bytes_.data(), other.bytes_.size());
  return *this;
}

StoreKey::~StoreKey() { ::explicit_bzero(bytes_.data(), bytes_.size()); }

std::string StoreKey::text() const {
  std::string text;
  char part[16];
  for (const uint8_t byte : bytes_) {
    std::snprintf(part, sizeof part, "%02x", byte);
    text += part;
  }
  std::snprintf(part, sizeof part, "-%08x", crc32c(bytes_));
  return text + part;
}

}  // namespace replpage
