#include "keeper/namespaces.h"

#include <fcntl.h>
#include <net/if.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstring>
#include <string>

#include "core/base/procfs.h"
#include "core/base/sys_error.h"
#include "core/base/unique_fd.h"

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

void cut_off() {
  if (::unshare(CLONE_NEWNET | CLONE_NEWIPC) != 0) {
    throw SysError::from_errno("unshare the network of a drill");
  }
  const UniqueFd socket(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  ifreq loopback{};
  std::strncpy(loopback.ifr_name, "lo", sizeof loopback.ifr_name - 1);
  loopback.ifr_flags = IFF_UP | IFF_RUNNING;
  if (!socket.valid() || ::ioctl(socket.get(), SIOCSIFFLAGS, &loopback) != 0) {
    throw SysError::from_errno("bring the loopback interface of a drill up");
  }
  for (const char* version : {"ipv4", "ipv6"}) {
    const UniqueFd any(
        ::open((std::string("/proc/sys/net/") + version + "/ip_nonlocal_bind").c_str(),
               O_WRONLY | O_CLOEXEC));
    if (any.valid()) (void)!::write(any.get(), "1", 1);  // a kernel without IPv6 lacks one
  }
}

}  // namespace replpage
