// Finds which descriptors of a group are the same open file description.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <unordered_map>
#include <vector>

namespace replpage {

class OpenFileIndex {
 public:
  struct Candidate {
    pid_t host_pid = 0;
    int fd = -1;
    uint64_t likeness = 0;  // equal for descriptors of one description; others may share it
    bool certain = false;   // likeness alone proves it (a socket's inode)
  };

  // Position of the description, or nullopt after adding the candidate as `next_position`.
  // Throws SysError.
  std::optional<uint32_t> find_or_add(const Candidate& candidate, uint32_t next_position);

  // Hash of what descriptors of one description have in common.
  static uint64_t likeness(uint64_t inode, int32_t mount, uint32_t flags, uint64_t position);

 private:
  struct Known {
    pid_t host_pid;
    int fd;
    uint32_t position;
  };
  // Ascending in kcmp(2)'s order, which is total while all of them are open.
  std::unordered_map<uint64_t, std::vector<Known>> known_;
};

}  // namespace replpage
