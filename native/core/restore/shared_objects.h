// Memory that processes of the group share (shared anonymous memory, memfds): one memfd of the
// keeper for each, mapped by the replica's processes.
#pragma once

#include <map>
#include <span>
#include <utility>
#include <vector>

#include "core/base/unique_fd.h"
#include "core/image/group_image.h"
#include "core/memory/page_run.h"
#include "core/restore/replica.h"

namespace replpage {

class SharedObjects {
 public:
  // Creates, resizes and forgets objects, known by device and inode in the primary.
  void shape(const std::vector<SharedObjectImage>& images);

  // The memfd that a mapping of (device, inode) maps. Throws SysError(ENOENT) for an unknown one.
  [[nodiscard]] int memfd(uint64_t device, uint64_t inode) const;

  // Applies runs of one object, all with pid 0 and the same object.
  void write(std::span<const PageRun> runs, StagedPages& staged);

  // A new open file description of the object a memfd descriptor leads to, with the image's flags
  // and position.
  [[nodiscard]] UniqueFd reopen(const OpenFileImage& file) const;

  // Each object once more, for reading.
  [[nodiscard]] std::vector<ReplicaView::Object> view() const;

  // Adds the seals that the primary's memfds have: nothing can be written through the keeper after.
  void seal();

 private:
  struct Object {
    UniqueFd memfd;
    SharedObjectImage image;
  };
  std::map<std::pair<uint64_t, uint64_t>, Object> objects_;
  std::map<uint32_t, std::pair<uint64_t, uint64_t>> by_id_;
};

}  // namespace replpage
