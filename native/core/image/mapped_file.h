// Files that are mapped shared and writable, as rule 2 compares them before a promotion.
#pragma once

#include <sys/types.h>

#include <optional>

#include "core/image/descriptor_image.h"
#include "core/image/mapping_image.h"

namespace replpage {

// What the mapping maps; nullopt when mapping or process are gone.
std::optional<MappedFileImage> read_mapped_file(pid_t host_pid, const MappingImage& mapping);

}  // namespace replpage
