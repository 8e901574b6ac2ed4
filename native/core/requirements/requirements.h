// What a group needs of the machine that it is to run on: gathered beside the primary, compared on
// the peer. See docs/formats/requirements.md for the encoding.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "core/base/archive.h"
#include "core/requirements/machine_facts.h"

namespace replpage {

enum class FileUse : uint8_t {
  kExecutable = 1,
  kMapped = 2,        // privately: a library, as a rule
  kMappedShared = 3,  // data; what is written to it is seen by others
  kOpen = 4,          // by a descriptor
  kDirectory = 5,     // working or root directory
};

// A path and what it leads to beside the primary.
struct FileRequirement {
  FileUse use{};
  std::string path;
  uint32_t type = 0;  // S_IFMT bits of stat(2)
  uint64_t device = 0, inode = 0, size = 0;
  int64_t modified_ns = 0;  // st_mtim
  uint64_t special = 0;     // st_rdev of a device
  bool written = false;     // open or mapped for writing
  bool on_network = false;  // its file system is one that machines share
  Bytes build_id = {};      // of a program or library that has one
  Bytes sha256 = {};        // else of its content, where that is compared
  std::string source = {};  // link of /proc that leads to it, beside the primary only; not encoded
  template <class A>
  void visit(A& a) {
    a(use, path, type, device, inode, size, modified_ns, special, written, on_network, build_id,
      sha256);
  }
};

struct Requirements {
  MachineFacts machine;
  bool uses_vdso = false;
  uint64_t highest_pid = 0, most_mappings = 0, highest_descriptor = 0;
  std::vector<std::string> bound;      // what exists on its machine only, each once
  std::vector<FileRequirement> files;  // each path and use once, ascending by path
  template <class A>
  void visit(A& a) {
    a(machine, uses_vdso, highest_pid, most_mappings, highest_descriptor, bound, files);
  }
};

// Hashes of files that did not change since, so that gathering again costs little.
class HashCache {
 public:
  // Throws SysError.
  Bytes sha256(int fd);
  Bytes build_id(int fd);

 private:
  struct Key {
    uint64_t device = 0, inode = 0, size = 0;
    int64_t changed_ns = 0;
    auto operator<=>(const Key&) const = default;
  };
  static constexpr size_t kKnownMax = 100'000;  // of each kind; then all are read anew
  static Key key_of(int fd);
  std::map<Key, Bytes> hashes_, build_ids_;
};

// Of the processes of a group, by the caller's pids, from /proc; they may run. What ends meanwhile
// is left out. Reads whole files, so nothing for a thread that others wait for: 1 ms for what has
// build ids, 0.6 s a GB else. Throws SysError.
Requirements gather_requirements(std::span<const pid_t> pids, HashCache& cache);

// With a header and a checksum, as it goes to a peer.
Bytes encode_requirements(Requirements& requirements);
// Throws FormatError for anything but one whole encoding of this version.
Requirements decode_requirements(std::span<const uint8_t> bytes);

}  // namespace replpage
