#include "core/restore/own_memory.h"

#include <cstdio>
#include <sstream>

#include "core/base/procfs.h"
#include "core/base/sys_error.h"

namespace replpage {

std::vector<OwnMapping> own_mappings() {
  const auto text = read_proc("/proc/self/maps");
  if (!text) throw SysError("read", ENOENT, on_path("/proc/self/maps"));
  std::vector<OwnMapping> mappings;
  std::istringstream lines(*text);
  for (std::string line; std::getline(lines, line);) {
    OwnMapping mapping;
    if (std::sscanf(line.c_str(), "%lx-%lx %*s %*s %*s %lu", &mapping.range.start,
                    &mapping.range.end, &mapping.inode) != 3) {
      throw FormatError("a line of /proc/self/maps has no range");
    }
    if (const size_t at = line.find('['); at != std::string::npos) mapping.name = line.substr(at);
    mappings.push_back(std::move(mapping));
  }
  return mappings;
}

std::vector<MappingImage> own_special_mappings() {
  std::vector<MappingImage> special;
  for (const OwnMapping& mapping : own_mappings()) {
    MappingImage image;
    image.start = mapping.range.start;
    image.end = mapping.range.end;
    if (mapping.name == "[vdso]") {
      image.kind = MappingKind::kVdso;
    } else if (mapping.name.starts_with("[vvar")) {
      image.kind = MappingKind::kVvar;
    } else {
      continue;
    }
    special.push_back(image);
  }
  return special;
}

uint64_t syscall_instruction_in_vdso(uint64_t vdso) {
  static const uint64_t offset = [] {
    for (const MappingImage& own : own_special_mappings()) {
      if (own.kind != MappingKind::kVdso) continue;
      const auto* bytes = reinterpret_cast<const uint8_t*>(own.start);  // NOLINT: our own vdso
      for (uint64_t at = 0; at + 1 < own.range().bytes(); ++at) {
        if (bytes[at] == 0x0F && bytes[at + 1] == 0x05) return at;
      }
    }
    return uint64_t{0};
  }();
  return offset == 0 ? 0 : vdso + offset;
}

}  // namespace replpage
