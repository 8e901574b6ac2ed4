#include "keeper/namespaces.h"

#include <sched.h>
#include <sys/mount.h>
#include <unistd.h>

#include <string>

#include "core/base/procfs.h"
#include "core/base/sys_error.h"

namespace replpage {
namespace {

struct NamespaceKind {
  const char* name;
  int flag;
};
constexpr NamespaceKind kKinds[] = {{"mnt", CLONE_NEWNS},
                                    {"net", CLONE_NEWNET},
                                    {"ipc", CLONE_NEWIPC},
                                    {"uts", CLONE_NEWUTS},
                                    {"cgroup", CLONE_NEWCGROUP}};

}  // namespace

int namespaces_to_enter(pid_t host_pid) {
  int flags = 0;
  for (const NamespaceKind& kind : kKinds) {
    const std::string theirs = "/proc/" + std::to_string(host_pid) + "/ns/" + kind.name;
    const auto target = read_link(theirs);
    if (!target) throw SysError("read the namespaces", ESRCH, on_pid(host_pid));
    if (target != read_link(std::string("/proc/self/ns/") + kind.name)) flags |= kind.flag;
  }
  return flags;
}

void enter_namespaces(int pidfd, int namespaces) {
  if (namespaces != 0 && ::setns(pidfd, namespaces) != 0) {
    throw SysError::from_errno("setns to the primary's namespaces");
  }
  if (::unshare(CLONE_NEWNS) != 0) throw SysError::from_errno("unshare the mount namespace");
  if (::mount(nullptr, "/", nullptr, MS_REC | MS_SLAVE, nullptr) != 0) {
    throw SysError::from_errno("make the mounts a slave");
  }
  // A primary that was a replica once brings a /proc of ours along; they must not pile up.
  (void)::umount2("/proc", MNT_DETACH);
  if (::mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, nullptr) != 0) {
    throw SysError::from_errno("mount", on_path("/proc"));
  }
  if (::chdir("/") != 0) throw SysError::from_errno("chdir", on_path("/"));
}

}  // namespace replpage
