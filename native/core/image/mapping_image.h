// One mapping of an address space, as a replica must rebuild it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/base/archive.h"
#include "core/base/page.h"

namespace replpage {

enum class MappingKind : uint8_t {
  kAnonymous = 1,     // private anonymous, heap and stack too
  kFilePrivate = 2,   // private mapping of a regular file
  kFileShared = 3,    // shared mapping of a regular file (tmpfs and /dev/shm included)
  kSharedObject = 4,  // shared anonymous memory or memfd: an object of the group
  kMemfdPrivate = 5,  // private mapping of a memfd
  kSysvShared = 6,    // SysV shared memory segment
  kVdso = 7,
  kVvar = 8,      // vvar and vvar_vclock: never copied, moved along with the vdso
  kVsyscall = 9,  // same in every process
};

// madvise state and other per-mapping flags, from VmFlags of /proc/PID/smaps.
enum MappingFlags : uint32_t {
  kGrowsDown = 1u << 0,
  kHugePage = 1u << 1,    // MADV_HUGEPAGE
  kNoHugePage = 1u << 2,  // MADV_NOHUGEPAGE
  kDontFork = 1u << 3,
  kDontDump = 1u << 4,
  kWipeOnFork = 1u << 5,
  kLocked = 1u << 6,  // mlock
  kMergeable = 1u << 7,
  kNoReserve = 1u << 8,
  kSequential = 1u << 9,
  kRandom = 1u << 10,
  kLockOnFault = 1u << 11,
};

struct MappingImage {
  uint64_t start = 0, end = 0;
  MappingKind kind = MappingKind::kAnonymous;
  uint32_t prot = 0;   // PROT_*
  uint32_t flags = 0;  // MappingFlags
  int32_t protection_key = 0;
  uint64_t offset = 0;             // in the file or object
  uint64_t device = 0, inode = 0;  // of the file; identifies a shared object within the group
  std::string path;                // file's path; name of the memfd or shared object
  int32_t shm_id = -1;             // SysV segment
  std::string anon_name;           // PR_SET_VMA_ANON_NAME
  template <class A>
  void visit(A& a) {
    a(start, end, kind, prot, flags, protection_key, offset, device, inode, path, shm_id,
      anon_name);
  }
  [[nodiscard]] PageRange range() const { return {start, end}; }
  bool operator==(const MappingImage&) const = default;
};

// A shared object of the group (shared anonymous memory, memfd). Its content is copied as pages of
// the pseudo process 0 at address 0 upwards of object `id`.
struct SharedObjectImage {
  uint32_t id = 0;  // lasts as long as the object; numbers of others that went are left out
  uint64_t device = 0, inode = 0;
  uint64_t size = 0;  // bytes
  bool is_memfd = false;
  uint32_t seals = 0;  // F_GET_SEALS of a memfd
  std::string name;    // memfd name without "/memfd:" prefix
  template <class A>
  void visit(A& a) {
    a(id, device, inode, size, is_memfd, seals, name);
  }
};

}  // namespace replpage
