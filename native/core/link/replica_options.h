// What a group's replica is made with, whether the group is protected or brought back.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <vector>

#include "core/base/clock_offsets.h"

namespace replpage {

// More than what a keeper gives a replica whose threads hang in the kernel.
inline constexpr uint64_t kKeeperAnswerMs = 60'000;

struct ReplicaOptions {
  std::string name;  // of the group
  uint64_t generation = 1;
  std::string keeper_path;     // the executable
  std::string control_socket;  // path of the keeper's status socket
  std::string spill_directory;
  std::string stdio_path;  // empty: /dev/null
  uid_t uid = 0;           // who asked: may trace the processes, and opens stdio_path
  gid_t gid = 0;
  std::vector<gid_t> groups;
  bool keep_files = false;
  PrimaryClocks clocks = {};         // of a primary on another machine
  std::string service_address = {};  // of the group; empty: it has none
  bool address_comes = false;        // to this machine, when the replica is promoted
  bool drill = false;                // it is tried out, and never promoted
  uint64_t staging_bytes_max = 256ull << 20;
  uint64_t spill_bytes_max = 64ull << 30;
  uint64_t keeper_answer_ms = kKeeperAnswerMs;  // one that is silent for so long is ended
};

}  // namespace replpage
