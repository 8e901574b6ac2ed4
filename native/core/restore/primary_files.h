// What the primary has and no path leads to any more (deleted, replaced): taken through its /proc
// while it is there.
#pragma once

#include <sys/types.h>

#include <string>

#include "core/base/unique_fd.h"
#include "core/image/mapping_image.h"

namespace replpage {

class PrimaryFiles {
 public:
  // `proc`: directory descriptor of a /proc that shows the primary's process as `host_pid`; it must
  // outlive this object. Below 0: there is none, and nothing is found.
  PrimaryFiles(int proc, pid_t host_pid) : proc_(proc), host_pid_(host_pid) {}

  // The file behind a mapping of the process (needs CAP_SYS_ADMIN, see proc(5)). Invalid: it is
  // not to be had.
  [[nodiscard]] UniqueFd open_mapped(const MappingImage& mapping) const;

  // The working directory of the process, when its path is `path` (with " (deleted)"). Invalid: it
  // is not to be had.
  [[nodiscard]] UniqueFd open_directory(const std::string& path) const;

 private:
  [[nodiscard]] bool leads_to(const std::string& link, const std::string& path) const;

  int proc_;
  pid_t host_pid_;
};

}  // namespace replpage
