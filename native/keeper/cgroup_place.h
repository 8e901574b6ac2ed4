// A control group of its own for a keeper and its replica, so that a service manager that ends the
// daemon's or the primary's control group leaves them alone.
#pragma once

#include <string>
#include <vector>

namespace replpage {

class CgroupPlace {
 public:
  // Moves the calling process to `replpage/<name>` of the v2 hierarchy, and of the v1 memory, pids
  // and freezer hierarchies, where they are mounted and writable. Never throws: what could not be
  // had is added to `notes`.
  CgroupPlace(const std::string& name, std::vector<std::string>& notes);

  // Moves the calling process to the roots and removes the groups, which must be empty of others.
  void leave();

 private:
  struct Group {
    std::string root, path;
  };
  std::vector<Group> groups_;
};

}  // namespace replpage
