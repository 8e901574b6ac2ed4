// What tells whether two files have the same content: the build id of a program or library, else a
// hash of all bytes.
#pragma once

#include <cstdint>
#include <span>

#include "core/base/archive.h"

namespace replpage {

// 32 bytes. Throws SysError.
Bytes sha256_of(std::span<const uint8_t> bytes);

// Of the whole file, read from its start; the position of the descriptor does not matter. Takes
// about 0.6 s a GB. Throws SysError.
Bytes sha256_of_file(int fd);

// NT_GNU_BUILD_ID of an ELF file; empty: it has none, or is no ELF file. Throws SysError.
Bytes build_id_of(int fd);

}  // namespace replpage
