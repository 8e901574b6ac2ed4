// Encodes and decodes plain structs. A struct lists its members once, in
// `template <class A> void visit(A& archive) { archive(first, second); }`,
// so that encoder and decoder cannot differ. Little-endian (x86-64 only, asserted below).
#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include "core/base/sys_error.h"

namespace replpage {

static_assert(std::endian::native == std::endian::little);

using Bytes = std::vector<uint8_t>;

// Most elements a decoded list may have. A longer one is damage, not data.
inline constexpr uint32_t kListLengthMax = 1u << 24;

// Appends to a byte vector.
class Writer {
 public:
  template <class... T>
  void operator()(T&... values) {
    (put(values), ...);
  }
  [[nodiscard]] Bytes take() { return std::move(bytes_); }

 private:
  void raw(const void* data, size_t size) {
    if (size == 0) return;
    const size_t at = bytes_.size();
    bytes_.resize(at + size);
    std::memcpy(bytes_.data() + at, data, size);
  }
  template <class T>
  void put(T& value) {
    if constexpr (requires { value.visit(*this); }) {
      value.visit(*this);
    } else {
      static_assert(std::is_trivially_copyable_v<T>);
      raw(&value, sizeof value);
    }
  }
  void put(std::string& text) {
    put_size(text.size());
    raw(text.data(), text.size());
  }
  template <class T>
  void put(std::vector<T>& list) {
    put_size(list.size());
    if constexpr (std::is_trivially_copyable_v<T> && !requires(T & t) { t.visit(*this); }) {
      raw(list.data(), list.size() * sizeof(T));
    } else {
      for (T& item : list) put(item);
    }
  }
  template <class T>
  void put(std::optional<T>& value) {
    uint8_t present = value.has_value() ? 1 : 0;
    raw(&present, 1);
    if (value) put(*value);
  }
  void put_size(size_t size) {
    auto count = static_cast<uint32_t>(size);
    raw(&count, sizeof count);
  }

  Bytes bytes_;
};

// Reads from a span; throws FormatError on truncation, an oversized list or a bad flag.
class Reader {
 public:
  explicit Reader(std::span<const uint8_t> bytes) : bytes_(bytes) {}

  template <class... T>
  void operator()(T&... values) {
    (get(values), ...);
  }
  // Throws FormatError when bytes are left: a longer body than the format knows is damage.
  void finish() const {
    if (at_ != bytes_.size()) throw FormatError("bytes left after the end of a structure");
  }

 private:
  void raw(void* data, size_t size) {
    if (size > bytes_.size() - at_) throw FormatError("structure is truncated");
    if (size != 0) std::memcpy(data, bytes_.data() + at_, size);
    at_ += size;
  }
  template <class T>
  void get(T& value) {
    if constexpr (std::is_same_v<T, bool>) {
      uint8_t flag = 0;
      raw(&flag, 1);
      if (flag > 1) throw FormatError("a flag is neither 0 nor 1");
      value = flag == 1;
    } else if constexpr (requires { value.visit(*this); }) {
      value.visit(*this);
    } else {
      static_assert(std::is_trivially_copyable_v<T>);
      raw(&value, sizeof value);
    }
  }
  void get(std::string& text) {
    text.resize(get_size(1));
    raw(text.data(), text.size());
  }
  template <class T>
  void get(std::vector<T>& list) {
    if constexpr (std::is_trivially_copyable_v<T> && !requires(T & t) { t.visit(*this); }) {
      list.resize(get_size(sizeof(T)));
      raw(list.data(), list.size() * sizeof(T));
    } else {
      const uint32_t count = get_size(1);
      list.clear();
      for (uint32_t i = 0; i < count; ++i) get(list.emplace_back());
    }
  }
  template <class T>
  void get(std::optional<T>& value) {
    bool present = false;
    get(present);
    if (present) {
      get(value.emplace());
    } else {
      value.reset();
    }
  }
  // A list cannot have more elements than bytes are left for: damage never allocates much.
  uint32_t get_size(size_t element_size) {
    uint32_t count = 0;
    raw(&count, sizeof count);
    if (count > kListLengthMax || count > (bytes_.size() - at_) / element_size) {
      throw FormatError("a list is longer than its structure");
    }
    return count;
  }

  std::span<const uint8_t> bytes_;
  size_t at_ = 0;
};

template <class T>
Bytes encode(T& value) {
  Writer writer;
  writer(value);
  return writer.take();
}

// Throws FormatError unless the bytes are exactly one T.
template <class T>
T decode(std::span<const uint8_t> bytes) {
  T value{};
  Reader reader(bytes);
  reader(value);
  reader.finish();
  return value;
}

}  // namespace replpage
