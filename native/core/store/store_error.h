// What can be wrong with the page store. Each kind asks for something else of the caller.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

namespace replpage {

enum class StoreFailure : uint8_t {
  kFull = 1,      // no room, or over the limit: keep pages in RAM, try again later
  kIo = 2,        // an operating error: the store may be back later
  kDamaged = 3,   // what is there is not what was written
  kGone = 4,      // a file or the directory is not there (any more)
  kUnusable = 5,  // a store that must not be used: not writable, no fsync, a future version, a name
  kWrongKey = 6,  // written with another key, or with none
};

class StoreError : public std::runtime_error {
 public:
  // `error`: the errno behind it, 0 where there is none.
  StoreError(StoreFailure kind, const std::string& what, int error = 0)
      : std::runtime_error(what), kind_(kind), error_(error) {}
  [[nodiscard]] StoreFailure kind() const noexcept { return kind_; }
  [[nodiscard]] int error() const noexcept { return error_; }

 private:
  StoreFailure kind_;
  int error_;
};

// Names file, offset and cause. Nothing of what was read may be used.
class StoreDamaged : public StoreError {
 public:
  StoreDamaged(const std::string& path, uint64_t offset, const std::string& cause)
      : StoreError(StoreFailure::kDamaged,
                   "page store: " + path + " at " + std::to_string(offset) + ": " + cause) {}
};

class StoreFull : public StoreError {
 public:
  explicit StoreFull(const std::string& what, int error = 0)
      : StoreError(StoreFailure::kFull, what, error) {}
};

// kGone for ENOENT, ENOTDIR and ESTALE, kFull for ENOSPC and EDQUOT, kUnusable for missing rights
// and read-only file systems, else kIo.
[[nodiscard]] StoreError store_error(const std::string& operation, const std::string& path,
                                     int error);

// Takes errno as the system call left it; throws StoreFull or StoreError.
[[noreturn]] void throw_store_error(const std::string& operation, const std::string& path);

}  // namespace replpage
