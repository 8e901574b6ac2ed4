// The one error of native code: which operation failed, on what, and why.
#pragma once

#include <cerrno>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>

namespace replpage {

// What an operation was applied to. Only what is known is set.
struct ErrorObject {
  std::optional<int> pid;
  std::optional<uint64_t> address;
  std::optional<std::string> path;
};

// Thrown for operating errors. what() reads "<operation> <object>: <errno text>".
class SysError : public std::runtime_error {
 public:
  SysError(std::string operation, int error, ErrorObject object = {});

  // Takes errno as the system call left it.
  static SysError from_errno(std::string operation, ErrorObject object = {}) {
    return SysError(std::move(operation), errno, std::move(object));
  }

  [[nodiscard]] int error() const noexcept { return error_; }
  [[nodiscard]] const std::string& operation() const noexcept { return operation_; }
  [[nodiscard]] const ErrorObject& object() const noexcept { return object_; }

 private:
  int error_;
  std::string operation_;
  ErrorObject object_;
};

// Thrown when bytes from a wire or a disk break their format. Never carries on with a guess.
class FormatError : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

inline ErrorObject on_pid(int pid) { return {.pid = pid, .address = {}, .path = {}}; }
inline ErrorObject on_path(std::string path) {
  return {.pid = {}, .address = {}, .path = std::move(path)};
}
inline ErrorObject at_address(int pid, uint64_t address) {
  return {.pid = pid, .address = address, .path = {}};
}

}  // namespace replpage
