// One line of /proc/PID/maps, split and classified. No system calls here, so that tests can feed
// it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "core/image/mapping_image.h"

namespace replpage {

struct MapLine {  // proc_pid_maps(5)
  uint64_t start = 0, end = 0;
  bool read = false, write = false, execute = false, shared = false;
  uint64_t offset = 0, device = 0, inode = 0;
  std::string_view name;  // as printed: still with newlines as \012
};

// nullopt when the text is not such a line (smaps mixes them with other lines).
std::optional<MapLine> parse_map_line(std::string_view text);

// Why a mapping cannot be replicated.
struct MapRefusal {
  const char* kind;
  const char* why;
};

// Device numbers of the kernel's own mounts, by which memory files are told from huge page files.
struct KernelMounts {
  uint64_t memory_files = 0;  // shm_mnt: memfd, shared anonymous, SysV
};

// Fills `image` from the line. What depends on VmFlags is left alone.
std::optional<MapRefusal> classify_mapping(const MapLine& line, const KernelMounts& mounts,
                                           MappingImage& image);

// Adds what a "VmFlags: rd wr ..." line of /proc/PID/smaps says (the codes after the colon).
std::optional<MapRefusal> apply_vm_flags(std::string_view codes, MappingImage& image);

}  // namespace replpage
