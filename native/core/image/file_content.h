// What open files hold that no path leads to: queues of pipes, files without a name.
#pragma once

#include <optional>
#include <string>

#include "core/base/unique_fd.h"
#include "core/image/descriptor_image.h"
#include "core/image/descriptor_info.h"

namespace replpage {

// Reads pipes through a pipe of its own, which tee(2) fills without consuming anything.
class PipeReader {
 public:
  // Fills content, or with `packets` (a writing end has O_DIRECT) socket.queue, and pipe_size of
  // `file`. Throws SysError.
  void read(int reading_end, bool packets, OpenFileImage& file);

 private:
  void make_room(int bytes);
  UniqueFd reader_, writer_;
  int room_ = 0;
};

// Whole content of a regular file, nullopt when it is longer than `bytes_max`. The descriptor need
// not be open for reading. Throws SysError.
std::optional<Bytes> read_whole_file(int file, size_t bytes_max);

// Path of a watched inode within the mount namespace of the process, nullopt when the file system
// has no file handles or the file is gone. Throws SysError.
std::optional<std::string> path_of_watch(pid_t host_pid, const InotifyEntry& entry);

}  // namespace replpage
