// One process's descriptors, read again at every epoch at the least cost.
//
// /proc/PID/fdinfo/N stays open between epochs: reading it again (about 1.5 us) tells flags,
// position and inode at once, where looking the link up costs more and tells less.
#pragma once

#include <sys/stat.h>
#include <sys/types.h>

#include <memory>
#include <string>
#include <unordered_set>
#include <vector>

#include "core/base/unique_fd.h"
#include "core/image/descriptor_image.h"
#include "core/image/descriptor_info.h"

namespace replpage {

// A file of /proc that may stay open, as long as there are not too many of them: each holds 4 KiB
// of the kernel's memory.
class KeptInfo {
 public:
  KeptInfo() = default;
  ~KeptInfo() { close(); }
  KeptInfo(const KeptInfo&) = delete;
  KeptInfo& operator=(const KeptInfo&) = delete;

  void open(UniqueFd file) noexcept;
  // Closes it where it is one too many.
  void close_surplus() noexcept;
  void close() noexcept;
  [[nodiscard]] const UniqueFd& file() const noexcept { return file_; }

 private:
  UniqueFd file_;
};

struct DescriptorEntry {
  int fd = -1;
  std::string text;     // fdinfo of this epoch
  DescriptorHead head;  // head.rest points into `text`
  bool changed = true;  // other than at the last refresh
  std::string link;     // target of /proc/PID/fd/N when it was last looked up
  KeptInfo info;

  // What was found out about the file behind it; kept by the capture.
  OpenFileImage file;
  std::vector<uint64_t> watched_inodes;  // of file.watches
  std::string refused;                   // why it cannot be replicated
  bool probed = false;                   // `file` is of this very open file
  bool settled = false;                  // and need not be looked at while `changed` is false
  bool stale = false;                    // has changed since it was looked at
  bool just_looked = false;              // since the last refresh
  uint64_t link_inode = 0;               // of `link`
  int32_t link_mount = 0;                // the same
  uint32_t place = 0;                    // see DescriptorCandidate
  uint32_t age = 0;                      // epochs since it was looked at
  uint32_t owner_age = 0;                // looks since its owner (F_GETOWN_EX) was read
};

class DescriptorTable {
 public:
  // Throws SysError (ESRCH: the process is gone).
  explicit DescriptorTable(pid_t host_pid);

  // Brings entries() up to date. False: the process is gone. Throws SysError, FormatError.
  bool refresh();

  // One entry once more, within the same epoch: what has changed in between counts as seen. False:
  // it is gone. Throws as refresh() does.
  bool reread(DescriptorEntry& entry) const;

  // Ascending by number.
  [[nodiscard]] std::vector<std::unique_ptr<DescriptorEntry>>& entries() { return entries_; }
  [[nodiscard]] DescriptorEntry* find(int fd);
  [[nodiscard]] pid_t host_pid() const { return host_pid_; }
  [[nodiscard]] int pidfd() const { return pidfd_.get(); }

  // Short-lived duplicate; invalid when the descriptor is gone. Throws SysError.
  [[nodiscard]] UniqueFd duplicate(int fd) const;
  // Target of the link, empty when gone. Throws SysError.
  [[nodiscard]] std::string read_target(int fd) const;
  // stat(2) of what is behind the descriptor; false when gone.
  bool status_of(int fd, struct stat& status) const;

  // Whether both processes have one table (CLONE_FILES). What is not shared never will be.
  bool shares_with(const DescriptorTable& other);

 private:
  bool list_numbers(std::vector<int>& numbers) const;
  bool reread_all();
  bool read_info(DescriptorEntry& entry) const;

  pid_t host_pid_;
  UniqueFd pidfd_, fd_directory_, info_directory_;
  std::vector<std::unique_ptr<DescriptorEntry>> entries_;
  std::unordered_set<pid_t> unshared_;
};

}  // namespace replpage
