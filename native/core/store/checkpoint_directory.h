// Directories of checkpoints: STORE/NAME/checkpoint-<group id>-<time>/ with names (hard links) of
// the segments that the checkpoint needs, and its manifest, which is written last. Everything here
// may wait for a hung mount for ever: call it where that can be killed.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/base/unique_fd.h"
#include "core/store/checkpoint_manifest.h"
#include "core/store/store_directory.h"

namespace replpage {

struct WrittenCheckpoint {
  std::string id;             // "<group id>-<time>"
  uint64_t linked_bytes = 0;  // of all segments that it keeps
};

// Makes a checkpoint of what is durable in the directory of the manifest's generation. Nothing is
// left of it when it fails, but where the store itself fails. Fills manifest.taken_ms with a time
// that no earlier checkpoint of the group has. Throws StoreError.
WrittenCheckpoint write_checkpoint(int store, const std::string& path, int generation,
                                   CheckpointManifest& manifest, const StoreKey* key);

// Removes all other checkpoints of the same group id, whole or not, but those in use.
void remove_other_checkpoints(int store, const std::string& path, const std::string& group,
                              const std::string& id);

struct RemovedCheckpoints {
  std::vector<std::string> ids;
  uint64_t freed_bytes = 0;  // that nothing else has a name of
};

// Removes one checkpoint of that name, or with an empty `id` all of them, of whatever group id.
// Throws StoreError: EBUSY when one is in use, by a restored process that still reads from it on
// this machine, kGone when there is none.
RemovedCheckpoints remove_checkpoints(int store, const std::string& path, const std::string& group,
                                      const std::string& id);

// Bytes on disk of all checkpoints of that name that no generation has a name of.
uint64_t bytes_of_checkpoints(int store, const std::string& path, const std::string& group);

struct FoundCheckpoint {
  std::string id;
  UniqueFd directory;  // as long as it, or a copy of it, is open, the checkpoint is in use
  CheckpointManifest manifest;
};

// `id` empty: the newest whole one of that name, of whatever group id. A newest one that is damaged
// is an error, not a reason to take an older one. Throws StoreError: kGone when there is none.
FoundCheckpoint find_checkpoint(int store, const std::string& path, const std::string& group,
                                const std::string& id, const StoreKey* key);

}  // namespace replpage
