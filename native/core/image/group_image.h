// Kernel state of a whole group at one epoch: what the replica must become when promoted.
#pragma once

#include <cstdint>
#include <vector>

#include "core/base/archive.h"
#include "core/image/descriptor_image.h"
#include "core/image/process_image.h"

namespace replpage {

struct GroupImage {
  uint64_t epoch = 0;
  uint64_t generation = 0;
  std::vector<ProcessImage> processes;  // root first, parents before children
  std::vector<ZombieImage> zombies;
  std::vector<FileTableImage> file_tables;
  std::vector<OpenFileImage> open_files;
  std::vector<SharedObjectImage> shared_objects;
  std::vector<MappedFileImage> mapped_files;  // for writing, each once
  template <class A>
  void visit(A& a) {
    a(epoch, generation, processes, zombies, file_tables, open_files, shared_objects, mapped_files);
  }
};

}  // namespace replpage
