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

// Bits of the kernel's vm_area_struct.vm_flags that keep their place (include/linux/mm.h).
enum VmFlagBits : uint64_t {
  kVmGrowsDown = 0x100,
  kVmPfnMap = 0x400,
  kVmLocked = 0x2000,
  kVmIo = 0x4000,
  kVmSequential = 0x8000,
  kVmRandom = 0x10000,
  kVmDontCopy = 0x20000,
  kVmLockOnFault = 0x80000,
  kVmNoReserve = 0x200000,
  kVmHugeTlb = 0x400000,
  kVmWipeOnFork = 0x2000000,
  kVmDontDump = 0x4000000,
  kVmHugePage = 0x20000000,
  kVmNoHugePage = 0x40000000,
  kVmMergeable = 0x80000000,
};
inline constexpr int kVmKeyShift = 32;  // of the protection key, four bits

// A line's mapping as the kernel itself has it.
struct VmBits {
  uint64_t start = 0, end = 0;
  uint64_t flags = 0;  // VmFlagBits
};

// Adds what the kernel's flags say, the protection key too.
std::optional<MapRefusal> apply_vm_bits(uint64_t flags, MappingImage& image);

// Adds what a "VmFlags: rd wr ..." line of /proc/PID/smaps says (the codes after the colon).
std::optional<MapRefusal> apply_vm_flags(std::string_view codes, MappingImage& image);

}  // namespace replpage
