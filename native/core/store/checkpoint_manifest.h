// The manifest of a checkpoint: what makes a directory of segments a whole group at one epoch.
// docs/formats/checkpoint.md has the layout.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "core/base/archive.h"
#include "core/store/store_key.h"

namespace replpage {

inline constexpr uint32_t kCheckpointVersion = 1;

struct CheckpointManifest {
  std::string name;  // of the group
  uint64_t group_id = 0, generation = 0, epoch = 0;
  uint64_t taken_ms = 0;        // wall time, since 1970
  uint32_t uid = 0, gid = 0;    // of the group's owner
  std::string options;          // of the group, as its daemon writes them
  std::string kernel;           // whose vdso the processes have mapped: see kernel_name()
  std::string boot_id;          // of the machine
  int32_t host_pid = 0;         // of the root there
  uint64_t start_time = 0;      // of the root there, in clock ticks
  uint64_t cold_pages = 0;      // that a restore need not wait for
  uint64_t state_bytes = 0;     // of an encoded CheckpointState
  uint32_t state_crc = 0;       // CRC32C
  std::vector<uint64_t> state;  // locations of its records, one for each kStateChunkBytes
  std::vector<uint32_t> segments;
  template <class A>
  void visit(A& a) {
    a(name, group_id, generation, epoch, taken_ms, uid, gid, options, kernel, boot_id, host_pid,
      start_time, cold_pages, state_bytes, state_crc, state, segments);
  }
};

// Of the state, in one record.
inline constexpr uint64_t kStateChunkBytes = 8 * 4096;
// What a manifest holds in all; some 200 MiB of state, which is the image of a TiB of memory.
inline constexpr size_t kManifestBytesMax = 60 * 1024 - sizeof(uint32_t);

// `key` null: not encrypted. Throws StoreError(kUnusable) when it is too large.
std::vector<uint8_t> seal_manifest(CheckpointManifest& manifest, const StoreKey* key);

// `path` is for messages. Throws StoreDamaged, or StoreError: kWrongKey, kUnusable (a version of
// the future).
CheckpointManifest open_manifest(std::span<const uint8_t> bytes, const StoreKey* key,
                                 const std::string& path);

}  // namespace replpage
