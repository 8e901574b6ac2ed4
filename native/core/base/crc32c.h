// CRC-32C (Castagnoli), with the SSE4.2 instruction where the CPU has it.
#pragma once

#include <cstdint>
#include <span>

namespace replpage {

uint32_t crc32c(std::span<const uint8_t> bytes, uint32_t seed = 0);

}  // namespace replpage
