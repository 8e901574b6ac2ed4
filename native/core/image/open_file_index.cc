#include "core/image/open_file_index.h"

#include <linux/kcmp.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <string>

#include "core/base/sys_error.h"

namespace replpage {

uint64_t OpenFileIndex::likeness(uint64_t inode, int32_t mount, uint32_t flags, uint64_t position) {
  uint64_t hash = 0x9e3779b97f4a7c15u;
  for (const uint64_t part : {inode, static_cast<uint64_t>(mount), uint64_t{flags}, position}) {
    hash = (hash ^ part) * 0xff51afd7ed558ccdu;
    hash ^= hash >> 32;
  }
  return hash;
}

std::optional<uint32_t> OpenFileIndex::find_or_add(const Candidate& candidate,
                                                   uint32_t next_position) {
  std::vector<Known>& list = known_[candidate.likeness];
  if (candidate.certain && !list.empty()) return list.front().position;
  size_t low = 0;
  size_t high = list.size();
  while (low < high) {
    const size_t middle = (low + high) / 2;
    const Known& other = list[middle];
    const long order =
        ::syscall(SYS_kcmp, other.host_pid, candidate.host_pid, KCMP_FILE, other.fd, candidate.fd);
    if (order < 0) {
      throw SysError::from_errno("kcmp fd " + std::to_string(candidate.fd),
                                 on_pid(candidate.host_pid));
    }
    if (order == 0) return other.position;
    if (order == 1) {
      low = middle + 1;  // the known one is less than the candidate
    } else {
      high = middle;
    }
  }
  list.insert(list.begin() + static_cast<std::ptrdiff_t>(low),
              {candidate.host_pid, candidate.fd, next_position});
  return std::nullopt;
}

}  // namespace replpage
