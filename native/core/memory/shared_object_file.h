// The content of a shared memory object (memfd, shared anonymous memory), read through a descriptor
// of our own.
#pragma once

#include <sys/stat.h>
#include <sys/types.h>

#include <optional>
#include <span>

#include "core/base/unique_fd.h"
#include "core/image/mapping_image.h"
#include "core/memory/page_copier.h"

namespace replpage {

class SharedObjectFile : public PageReader {
 public:
  // Opens the object behind a mapping, or behind one of the process's descriptors. nullopt when the
  // process has it no more. Reading leaves the object's access time alone. Throws SysError.
  static std::optional<SharedObjectFile> open_mapping(pid_t host_pid, const MappingImage& mapping);
  static std::optional<SharedObjectFile> open_descriptor(pid_t host_pid,
                                                         const SharedObjectImage& object);

  // Pages that hold data. Holes read as zeros. Throws SysError.
  [[nodiscard]] PageRanges extents() const;

  // Whether anything may have happened to the object since the last call other than writes to pages
  // that are mapped writable already: pwrite, fallocate, mmap, but write faults too, which set its
  // times as well (fault_dirty_shared_page in mm/memory.c). True the first time. A time of just now
  // proves nothing, since another change may follow in the same clock tick: it counts next time.
  bool changed_otherwise();

  void read(std::span<const PageRange> ranges, std::span<uint8_t> room,
            PageRanges& unreadable) override;

 private:
  explicit SharedObjectFile(UniqueFd fd) : fd_(std::move(fd)) {}

  UniqueFd fd_;
  std::optional<struct stat> last_;
  bool too_fresh_ = false;
};

}  // namespace replpage
