// System calls that a replica's thread executes in one go.
//
// Every replica process has the stub mapped: a page of position-independent code and a shared data
// area (kStubDataBytes) that the keeper sees too. A batch is an array of operations in that area;
// the stub's loop executes them and traps, so a batch costs one stop however long it is.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace replpage {

inline constexpr uint64_t kStubDataBytes = 256 * 1024;

// One argument: an immediate, the address of data in the batch, a 32-bit value loaded from such
// data at execution time (a descriptor received before), or the result of an earlier operation.
struct BatchArgument {
  enum class Kind : uint8_t { kValue, kDataAddress, kLoad32, kResultOf };
  Kind kind = Kind::kValue;
  uint64_t value = 0;  // the value, offset in the data, or operation index
  BatchArgument() = default;
  template <class T>
  requires std::is_integral_v<T> BatchArgument(T immediate)
      : value(static_cast<uint64_t>(immediate)) {}  // NOLINT: meant
  static BatchArgument data(uint64_t offset) { return make(Kind::kDataAddress, offset); }
  static BatchArgument load32(uint64_t offset) { return make(Kind::kLoad32, offset); }
  static BatchArgument result_of(size_t operation) { return make(Kind::kResultOf, operation); }

 private:
  static BatchArgument make(Kind kind, uint64_t value) {
    BatchArgument argument;
    argument.kind = kind;
    argument.value = value;
    return argument;
  }
};

struct BatchOperation {
  long number = 0;
  std::array<BatchArgument, 6> arguments;
  bool must_succeed = true;  // a negative result ends the batch
  const char* label = "";    // for the error: which kernel state this sets
};

class SyscallBatch {
 public:
  // Returns the operation's index.
  size_t add(const char* label, long number, std::array<BatchArgument, 6> arguments = {},
             bool must_succeed = true);
  // Copies bytes into the batch's data; returns their offset (aligned to 8). Throws SysError(E2BIG)
  // when the stub's data area would overflow.
  uint64_t put(std::span<const uint8_t> bytes);
  uint64_t put_text(const std::string& text);  // zero-terminated
  template <class T>
  uint64_t put_value(const T& value) {
    return put({reinterpret_cast<const uint8_t*>(&value), sizeof value});
  }
  uint64_t reserve(size_t bytes);  // zeroed; read back with BatchResult::data
  // For structs that hold pointers (iovec, msghdr, clone_args): when the batch runs, the 8 bytes at
  // offset `at` become the replica's address of the data at offset `target`.
  void store_address(uint64_t at, uint64_t target);
  [[nodiscard]] bool empty() const { return operations_.empty(); }
  [[nodiscard]] const std::vector<BatchOperation>& operations() const { return operations_; }
  [[nodiscard]] const std::vector<uint8_t>& data() const { return data_; }
  [[nodiscard]] const std::vector<std::pair<uint64_t, uint64_t>>& addresses() const {
    return addresses_;
  }

 private:
  std::vector<BatchOperation> operations_;
  std::vector<uint8_t> data_;
  std::vector<std::pair<uint64_t, uint64_t>> addresses_;
};

struct BatchResult {
  std::vector<long> results;  // one per executed operation, -errno on failure
  std::vector<uint8_t> data;  // the data area as the batch left it
};

}  // namespace replpage
