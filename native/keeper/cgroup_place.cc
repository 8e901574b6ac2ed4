#include "keeper/cgroup_place.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>
#include <sstream>

#include "core/base/procfs.h"
#include "core/base/sys_error.h"
#include "core/base/unique_fd.h"

namespace replpage {
namespace {

constexpr const char* kParent = "/replpage";

// v1 hierarchies that a service manager or a container runtime ends processes by.
bool wanted_v1(const std::string& options) {
  std::istringstream list(options);
  for (std::string option; std::getline(list, option, ',');) {
    if (option == "memory" || option == "pids" || option == "freezer") return true;
  }
  return false;
}

// Mount points of the hierarchies, from /proc/self/mountinfo (proc(5)): fields 5 and, after the
// separator, type and super options.
std::vector<std::string> hierarchy_roots() {
  std::vector<std::string> roots;
  std::istringstream mounts(read_proc("/proc/self/mountinfo").value_or(""));
  for (std::string line; std::getline(mounts, line);) {
    std::istringstream fields(line);
    std::string skipped;
    std::string root;
    std::string at;
    fields >> skipped >> skipped >> skipped >> root >> at;
    const size_t separator = line.find(" - ");
    if (separator == std::string::npos) continue;
    std::istringstream rest(line.substr(separator + 3));
    std::string type;
    std::string source;
    std::string options;
    rest >> type >> source >> options;
    if (type == "cgroup2" || (type == "cgroup" && wanted_v1(options))) roots.push_back(at);
  }
  return roots;
}

bool join(const std::string& group) {
  UniqueFd fd(::open((group + "/cgroup.procs").c_str(), O_WRONLY | O_CLOEXEC));
  return fd.valid() && ::write(fd.get(), "0", 1) == 1;  // 0: the writer (cgroups(7))
}

bool make_directory(const std::string& path) {
  return ::mkdir(path.c_str(), 0755) == 0 || errno == EEXIST;
}

// Removes groups that a killed holder left behind; those in use refuse.
void sweep(const std::string& parent) {
  struct Close {
    void operator()(DIR* d) const { ::closedir(d); }
  };
  std::unique_ptr<DIR, Close> directory(::opendir(parent.c_str()));
  while (const dirent* entry = directory ? ::readdir(directory.get()) : nullptr) {
    if (entry->d_type == DT_DIR && entry->d_name[0] != '.') {
      ::rmdir((parent + "/" + entry->d_name).c_str());
    }
  }
}

// Again when the sweep of another holder took the new group away.
bool make_and_join(const std::string& parent, const std::string& path) {
  constexpr int kTries = 5;
  for (int i = 0; i < kTries; ++i) {
    if (make_directory(parent) && make_directory(path) && join(path)) return true;
    if (errno != ENOENT && errno != ENODEV) return false;
  }
  return false;
}

// A group name is one path component.
std::string component(std::string name) {
  std::replace(name.begin(), name.end(), '/', '_');
  return name.empty() || name.front() == '.' ? "_" + name : name;
}

}  // namespace

CgroupPlace::CgroupPlace(const std::string& name, std::vector<std::string>& notes) {
  try {
    for (const std::string& root : hierarchy_roots()) {
      const std::string parent = root + kParent;
      const std::string path = parent + "/" + component(name);
      sweep(parent);
      if (make_and_join(parent, path)) {
        groups_.push_back({.root = root, .path = path});
      } else {
        notes.push_back("no control group " + path + ": " + strerrordesc_np(errno));
      }
    }
  } catch (const SysError& error) {
    notes.push_back(std::string("no control groups: ") + error.what());
  }
  if (groups_.empty() && notes.empty()) notes.emplace_back("no control groups are mounted");
}

void CgroupPlace::leave() {
  for (const Group& group : groups_) {
    join(group.root);
    ::rmdir(group.path.c_str());
    ::rmdir((group.root + kParent).c_str());  // succeeds for the last one
  }
  groups_.clear();
}

}  // namespace replpage
