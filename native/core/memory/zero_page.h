// Finds pages that hold nothing but zeros.
#pragma once

#include <cstdint>

namespace replpage {

// Whether the 4096 bytes at `page` are all zero. Uses AVX2 where the CPU has it.
bool is_zero_page(const uint8_t* page);

}  // namespace replpage
