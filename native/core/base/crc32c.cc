#include "core/base/crc32c.h"

#include <nmmintrin.h>

#include <array>
#include <cstring>

namespace replpage {
namespace {

constexpr uint32_t kPolynomial = 0x82F63B78;  // reflected

constexpr std::array<uint32_t, 256> make_table() {
  std::array<uint32_t, 256> table{};
  for (uint32_t byte = 0; byte < 256; ++byte) {
    uint32_t remainder = byte;
    for (int bit = 0; bit < 8; ++bit) {
      remainder = (remainder >> 1) ^ ((remainder & 1) != 0 ? kPolynomial : 0);
    }
    table[byte] = remainder;
  }
  return table;
}

constexpr std::array<uint32_t, 256> kTable = make_table();

uint32_t by_table(std::span<const uint8_t> bytes, uint32_t crc) {
  for (const uint8_t byte : bytes) crc = kTable[(crc ^ byte) & 0xFF] ^ (crc >> 8);
  return crc;
}

__attribute__((target("sse4.2"))) uint32_t by_instruction(std::span<const uint8_t> bytes,
                                                          uint32_t crc) {
  uint64_t wide = crc;
  while (bytes.size() >= 8) {
    uint64_t word = 0;
    std::memcpy(&word, bytes.data(), sizeof word);
    wide = _mm_crc32_u64(wide, word);
    bytes = bytes.subspan(8);
  }
  auto narrow = static_cast<uint32_t>(wide);
  for (const uint8_t byte : bytes) narrow = _mm_crc32_u8(narrow, byte);
  return narrow;
}

}  // namespace

uint32_t crc32c(std::span<const uint8_t> bytes, uint32_t seed) {
  const uint32_t crc = ~seed;
  return ~(__builtin_cpu_supports("sse4.2") ? by_instruction(bytes, crc) : by_table(bytes, crc));
}

}  // namespace replpage
