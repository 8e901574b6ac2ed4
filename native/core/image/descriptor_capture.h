// Reads the descriptors of a frozen or dying group, and takes the open files themselves.
#pragma once

#include <sys/types.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/base/unique_fd.h"
#include "core/image/group_image.h"
#include "core/image/refusal.h"

namespace replpage {

struct DescriptorCaptureInput {
  struct Process {
    pid_t host_pid = 0;
    int32_t group_pid = 0;
  };
  std::vector<Process> processes;  // order of GroupImage::processes
  // Where standard output of a promoted process goes: such a stream leads outside, and what it
  // wrote is no state that an older epoch could contradict. Empty: none.
  std::string stream_path;
  Refusals* refusals = nullptr;  // takes what cannot be replicated
  bool check_threads = false;    // refuses threads with a table of their own, which costs 1 us each
  bool with_content = true;      // queues of pipes and sockets, deleted files; not at a hand-over
  // Number of a shared object (SharedObjectImage::id) that lasts for the life of the group. Empty:
  // the next free number of the image.
  std::function<uint32_t(uint64_t device, uint64_t inode)> object_id;
};

// Fills mapped_files (from the mappings that are there already), file_tables, open_files, shared
// memfd objects' ids and each process's file_table of `image`. Keeps a cache between epochs: an
// unchanged descriptor costs little. Never consumes queued data (MSG_PEEK, tee), never holds a
// duplicate of a socket or pipe after it returns (the primary's close must stay a close). Standard
// streams that lead outside the group become kOutsideStream.
class DescriptorCapture {
 public:
  static std::unique_ptr<DescriptorCapture> create();
  virtual ~DescriptorCapture() = default;
  virtual void capture(const DescriptorCaptureInput& input, GroupImage& image) = 0;

  // The open files of a frozen or dying group by pidfd_getfd, in the order of image.open_files;
  // invalid where one could not be taken. A kOutsideStream or a kPidFd is taken only when an epoll
  // of the group watches it: the replica must remove that watch, and needs the file to name it.
  static std::vector<UniqueFd> take(const DescriptorCaptureInput& input, const GroupImage& image);
};

}  // namespace replpage
