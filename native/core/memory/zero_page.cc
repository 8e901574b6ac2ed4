#include "core/memory/zero_page.h"

#include <immintrin.h>

#include <cstring>

#include "core/base/page.h"

namespace replpage {
namespace {

__attribute__((target("avx2"))) bool zero_avx2(const uint8_t* page) {
  const auto* at = reinterpret_cast<const __m256i*>(page);
  const auto* end = at + kPageSize / sizeof(__m256i);
  for (; at != end; at += 4) {  // most pages differ in their first 128 bytes
    const __m256i low = _mm256_or_si256(_mm256_loadu_si256(at), _mm256_loadu_si256(at + 1));
    const __m256i high = _mm256_or_si256(_mm256_loadu_si256(at + 2), _mm256_loadu_si256(at + 3));
    const __m256i all = _mm256_or_si256(low, high);
    if (_mm256_testz_si256(all, all) == 0) return false;
  }
  return true;
}

bool zero_words(const uint8_t* page) {
  for (size_t i = 0; i < kPageSize; i += 64) {
    uint64_t words[8];
    std::memcpy(words, page + i, sizeof words);
    uint64_t all = 0;
    for (const uint64_t word : words) all |= word;
    if (all != 0) return false;
  }
  return true;
}

}  // namespace

bool is_zero_page(const uint8_t* page) {
  static const bool has_avx2 = __builtin_cpu_supports("avx2") != 0;
  return has_avx2 ? zero_avx2(page) : zero_words(page);
}

}  // namespace replpage
