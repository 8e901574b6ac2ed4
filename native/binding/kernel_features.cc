#include "binding/kernel_features.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <optional>
#include <string>

#include "core/base/procfs.h"
#include "core/base/unique_fd.h"
#include "core/memory/soft_dirty_tracker.h"
#include "core/memory/write_protect_uffd.h"

namespace replpage::binding {
namespace {

// Numbers of capabilities(7).
constexpr int kSysPtrace = 19;
constexpr int kSysAdmin = 21;
constexpr int kSysResource = 24;
constexpr int kNetAdmin = 12;

bool has_capability(int number) {
  const auto status = read_proc("/proc/self/status");
  if (!status) return false;
  const auto mask = field_of(*status, "CapEff");
  if (!mask) return false;
  return (std::stoull(std::string(*mask), nullptr, 16) >> number & 1) != 0;
}

// Takes a duplicate of our own standard input through a pidfd (pidfd_getfd(2)).
bool pidfd_getfd_works() {
  const UniqueFd self(static_cast<int>(::syscall(SYS_pidfd_open, ::getpid(), 0)));
  if (!self.valid()) return false;
  const UniqueFd copy(static_cast<int>(::syscall(SYS_pidfd_getfd, self.get(), self.get(), 0)));
  return copy.valid();
}

// TCP_REPAIR of tcp(7), as a socket that was never connected takes it.
bool tcp_repair_works() {
  const UniqueFd socket(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const int on = 1;
  return socket.valid() && ::setsockopt(socket.get(), IPPROTO_TCP, TCP_REPAIR, &on, sizeof on) == 0;
}

bool exists(const char* path) { return ::access(path, F_OK) == 0; }

const char* cgroup_version() {
  if (exists("/sys/fs/cgroup/cgroup.controllers")) return "v2";
  if (exists("/sys/fs/cgroup/unified/cgroup.controllers")) return "v1 and v2";
  return exists("/proc/cgroups") ? "v1" : "none";
}

// ptrace_scope of the Yama security module: 3 lets nobody attach.
std::optional<int> yama_scope() {
  const auto text = read_proc("/proc/sys/kernel/yama/ptrace_scope");
  if (!text) return std::nullopt;
  return std::stoi(*text);
}

}  // namespace

Napi::Value probe_kernel(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  Napi::Object features = Napi::Object::New(env);
  utsname name{};
  ::uname(&name);
  features.Set("release", static_cast<const char*>(name.release));
  const auto flag = [&](const char* key, bool value) {
    features.Set(key, Napi::Boolean::New(env, value));
  };
  flag("uffdWp", WriteProtectUffd::supported());
  flag("softDirty", SoftDirtyTracker::supported());
  flag("pidfdGetfd", pidfd_getfd_works());
  flag("tcpRepair", tcp_repair_works());
  flag("idleBitmap", exists("/sys/kernel/mm/page_idle/bitmap"));
  features.Set("cgroup", cgroup_version());
  if (const auto scope = yama_scope()) features.Set("yamaScope", *scope);
  flag("capSysPtrace", has_capability(kSysPtrace));
  flag("capSysAdmin", has_capability(kSysAdmin));
  flag("capSysResource", has_capability(kSysResource));
  flag("capNetAdmin", has_capability(kNetAdmin));
  return features;
}

}  // namespace replpage::binding
