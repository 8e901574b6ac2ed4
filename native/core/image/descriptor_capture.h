// Reads the descriptors of a frozen or dying group, and takes the open files themselves.
#pragma once

#include <sys/types.h>

#include <memory>
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
  Refusals* refusals = nullptr;    // set when protection starts
  bool with_content = true;        // queues of pipes and sockets, deleted files; not at a hand-over
};

// Fills file_tables, open_files, shared memfd objects' ids and each process's file_table of `image`.
// Keeps a cache between epochs: an unchanged descriptor costs little. Never consumes queued data
// (MSG_PEEK, tee), never holds a duplicate of a socket or pipe after it returns (the primary's close
// must stay a close). Standard streams that lead outside the group become kOutsideStream.
class DescriptorCapture {
 public:
  static std::unique_ptr<DescriptorCapture> create();
  virtual ~DescriptorCapture() = default;
  virtual void capture(const DescriptorCaptureInput& input, GroupImage& image) = 0;

  // The open files of a frozen or dying group by pidfd_getfd, in the order of image.open_files;
  // invalid where one is kOutsideStream or could not be taken.
  static std::vector<UniqueFd> take(const DescriptorCaptureInput& input, const GroupImage& image);
};

}  // namespace replpage
