// The key of a page store: 32 bytes held by the daemons, never in the store itself.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace replpage {

inline constexpr size_t kStoreKeyBytes = 32;

// Its memory is wiped when it ends. Copies are made by name only: from_bytes(key.bytes()).
class StoreKey {
 public:
  // Reads the key file; makes one (mode 0600, durable before it is used) where there is none.
  // Throws SysError naming the path: EACCES when others than its owner may read or write it or it
  // is another user's, EINVAL when it is no regular file or of a wrong length.
  static StoreKey load_or_make(const std::string& path);
  // The same of a file that must be there.
  static StoreKey load(const std::string& path);
  static StoreKey random();
  static StoreKey from_bytes(std::span<const uint8_t, kStoreKeyBytes> bytes);
  // Throws FormatError when a digit is wrong or missing.
  static StoreKey from_text(std::string_view text);

  StoreKey(StoreKey&& other) noexcept;
  StoreKey& operator=(StoreKey&& other) noexcept;
  StoreKey(const StoreKey&) = delete;
  StoreKey& operator=(const StoreKey&) = delete;
  ~StoreKey();

  [[nodiscard]] std::span<const uint8_t, kStoreKeyBytes> bytes() const { return bytes_; }
  // 64 hexadecimal digits, a minus, 8 of a checksum: for a person to carry to another node.
  [[nodiscard]] std::string text() const;

 private:
  StoreKey() = default;
  std::array<uint8_t, kStoreKeyBytes> bytes_{};
};

}  // namespace replpage
