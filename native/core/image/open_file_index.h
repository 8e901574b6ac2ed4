// Finds which descriptors of a group are the same open file description.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <span>
#include <vector>

namespace replpage {

struct DescriptorCandidate {
  pid_t host_pid = 0;
  int fd = -1;
  uint64_t likeness = 0;  // equal for descriptors of one description; others may share it
  bool certain = false;   // likeness alone proves it (a socket's inode)
  // Kept by the caller for the next time: its place among its like, 0 for none. Only kcmp(2) tells
  // for sure, but what is in order already takes one call for each, not one for each halving.
  uint32_t* place = nullptr;
};

// Hash of what descriptors of one description have in common.
uint64_t descriptor_likeness(uint64_t inode, int32_t mount, uint32_t flags, uint64_t position);

// For each candidate the index of the first one with the same description: its own for that one.
// The processes stand still. Throws SysError.
std::vector<uint32_t> first_of_same_file(std::span<const DescriptorCandidate> candidates);

}  // namespace replpage
