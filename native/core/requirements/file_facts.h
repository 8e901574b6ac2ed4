// What stat(2) tells of a file that another machine has to have as well.
#pragma once

#include <sys/stat.h>

#include <string>

#include "core/requirements/requirements.h"

namespace replpage {

// Largest data file whose content is compared; of larger ones size and time are.
inline constexpr uint64_t kComparedBytesMax = 64ull << 20;
// Largest program, library or privately mapped file whose content is compared (some 5 s).
inline constexpr uint64_t kHashedBytesMax = 4ull << 30;

// Type, identity, size, times and kind of file system; `path` leads to the file.
void fill_file_facts(const struct stat& status, const std::string& path, FileRequirement& file);

}  // namespace replpage
