#include <sys/stat.h>

#include <cstdio>
#include <string_view>

#include "core/base/procfs.h"
#include "core/checkpoint/checkpoint_state.h"
#include "core/group/group_types.h"

namespace replpage {
namespace {

std::string range_of(const MappingImage& mapping) {
  char text[64];
  std::snprintf(text, sizeof text, "mapping 0x%llx-0x%llx",
                static_cast<unsigned long long>(mapping.start),
                static_cast<unsigned long long>(mapping.end));
  return text;
}

bool other_namespace(pid_t host_pid, const std::string& name) {
  const std::string path = "/ns/" + name;
  return read_link("/proc/" + std::to_string(host_pid) + path) != read_link("/proc/self" + path);
}

// Its "/" is another directory than ours, and no path leads there.
bool other_root(pid_t host_pid, const GroupImage& image) {
  struct stat theirs {
  }, ours{};
  const std::string path = "/proc/" + std::to_string(host_pid) + "/root/";
  if (image.processes.front().root_directory != "/" || ::stat(path.c_str(), &theirs) != 0 ||
      ::stat("/", &ours) != 0) {
    return false;
  }
  return theirs.st_ino != ours.st_ino || theirs.st_dev != ours.st_dev;
}

}  // namespace

void refuse_unrestorable(const GroupImage& image, pid_t host_pid) {
  Refusals refusals;
  constexpr std::string_view kDeleted = " (deleted)";
  for (const ProcessImage& process : image.processes) {
    for (const MappingImage& mapping : process.mappings) {
      const bool file =
          mapping.kind == MappingKind::kFilePrivate || mapping.kind == MappingKind::kFileShared;
      if (file && mapping.path.ends_with(kDeleted)) {
        refusals.push_back({process.pid, range_of(mapping), "deleted file",
                            mapping.path + " is mapped, and nothing will lead to it any more"});
      }
      if (mapping.kind == MappingKind::kSysvShared) {
        refusals.push_back({process.pid, range_of(mapping), "SysV shared memory",
                            "it belongs to the machine and is not part of a checkpoint"});
      }
    }
  }
  const int32_t root = image.processes.empty() ? 0 : image.processes.front().pid;
  for (const char* name : {"net", "ipc", "uts", "time"}) {
    if (!other_namespace(host_pid, name)) continue;
    refusals.push_back({root, std::string("namespace ") + name, "namespace",
                        "it is another than the daemon's, and ends with its processes"});
  }
  if (root != 0 && other_root(host_pid, image)) {
    refusals.push_back({root, "root directory", "namespace",
                        "it has mounts of its own, which end with its processes"});
  }
  if (!refusals.empty()) throw RefusedError(std::move(refusals));
}

}  // namespace replpage
