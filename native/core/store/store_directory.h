// The directory of a page store, and the directories of generations in it:
// STORE/replpage-store and STORE/NAME/<group id>/G<generation>/segment-<number>.
// Everything here may wait for a hung mount for ever: call it where that can be killed.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/base/unique_fd.h"
#include "core/store/store_error.h"

namespace replpage {

struct StoreOptions {
  std::string path;
  bool writing = false;  // makes the format mark where there is none; tries to write
  // For tests: file systems that forget everything with the machine's power.
  bool allow_memory_file_systems = false;
};

// Throws StoreError: kGone when there is no such directory (it is never made: it may be the mount
// point of what is not mounted), kUnusable when it is not writable, lies on a file system without
// fsync, or has the mark of another version, kDamaged when the mark is damaged.
UniqueFd open_store(const StoreOptions& options);

// Which generation of which group.
struct GenerationName {
  std::string group;  // 1-63 of letters, digits, '.', '_', '-', the first a letter or digit
  uint64_t group_id = 0;
  uint64_t generation = 0;
};

// Relative to the store. Throws StoreError(kUnusable) when the name cannot be a directory's.
std::string generation_path(const GenerationName& name);

// Whether two nodes see one directory: one writes the probe, the other looks for it.
void write_probe(int store, const std::string& path, uint64_t nonce);
// Sees names that other nodes made also where NFS hides them (statx(2), AT_STATX_FORCE_SYNC).
bool check_probe(int store, const std::string& path, uint64_t nonce);
void remove_probe(int store, uint64_t nonce);

// Makes the directory of a generation and marks it as this writer's (a random number). With
// `again` it must be this writer's already, if it is there. Throws StoreError(kUnusable) when it is
// another's: names are never used twice.
UniqueFd make_generation(int store, const std::string& path, const GenerationName& name,
                         uint64_t writer, bool again);

// Throws StoreError(kGone) when there is none.
UniqueFd open_generation(int store, const std::string& path, const GenerationName& name);

struct SegmentFile {
  uint32_t number = 0;
  uint64_t bytes = 0;
};

// Ascending by number. What is no segment is left out.
std::vector<SegmentFile> list_segments(int generation, const std::string& path);

// Generations of a group that have a directory, ascending.
std::vector<uint64_t> list_generations(int store, const std::string& path,
                                       const GenerationName& name);

std::string segment_file_name(uint32_t number);

// Removes one segment. One that is not there is no error.
void remove_segment(int generation, const std::string& path, uint32_t number);

// Removes the directory of a generation with all that this program writes there, and the group's
// directories when nothing is left in them. One that is not there is no error; a foreign file in it
// is (ENOTEMPTY).
void remove_generation(int store, const std::string& path, const GenerationName& name);

}  // namespace replpage
