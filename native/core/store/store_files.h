// Small steps with files of a page store, which may lie on NFS.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "core/base/unique_fd.h"

namespace replpage {

std::string hex16(uint64_t number);

// Makes visible what other nodes did: NFS clients remember for tens of seconds which names were not
// in a directory, and how long a file was. Best effort.
void see_changes(int file);

// nullopt: there is none. `path` is for messages. Throws StoreError.
std::optional<std::string> read_small_file(int directory, const std::string& name,
                                           const std::string& path, size_t bytes_max);

// Fills as much of `size` bytes from `offset` on as the file has; fewer only at its end. Throws
// StoreError.
size_t read_at(int file, const std::string& path, void* into, size_t size, uint64_t offset);

}  // namespace replpage
