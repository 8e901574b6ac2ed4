#include "core/base/kernel_features.h"

#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/capability.h>
#include <linux/sched.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstdint>

#include "core/base/procfs.h"
#include "core/base/sys_error.h"
#include "core/base/unique_fd.h"

namespace replpage {
namespace {

// A child that only waits to be killed. It raises no SIGCHLD, so that nobody else's handler sees
// it.
class ProbeChild {
 public:
  // wanted_tid 0: any id.
  explicit ProbeChild(pid_t wanted_tid = 0) {
    clone_args arguments{};
    if (wanted_tid != 0) {
      arguments.set_tid = reinterpret_cast<uint64_t>(&wanted_tid);
      arguments.set_tid_size = 1;
    }
    pid_ = static_cast<pid_t>(::syscall(SYS_clone3, &arguments, sizeof arguments));
    error_ = pid_ < 0 ? errno : 0;
    if (pid_ == 0) {
      for (;;) ::syscall(SYS_pause);
    }
  }
  ~ProbeChild() {
    if (pid_ <= 0) return;
    ::kill(pid_, SIGKILL);
    while (::waitpid(pid_, nullptr, __WALL) < 0 && errno == EINTR) {
    }
  }
  ProbeChild(const ProbeChild&) = delete;
  ProbeChild& operator=(const ProbeChild&) = delete;

  [[nodiscard]] pid_t pid() const { return pid_; }
  [[nodiscard]] int error() const { return error_; }

 private:
  pid_t pid_ = -1;
  int error_ = 0;
};

// A known request with a bad argument is refused, an unknown one is "not a typewriter".
bool pagemap_scan() {
  const UniqueFd pagemap(::open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC));
  std::array<uint64_t, 12> argument{};  // struct pm_scan_arg with size 0
  constexpr unsigned long kPagemapScan = _IOWR('f', 16, decltype(argument));
  return pagemap.valid() &&
         (::ioctl(pagemap.get(), kPagemapScan, &argument) == 0 || errno != ENOTTY);
}

bool pidfd_getfd() {
  const UniqueFd self(static_cast<int>(::syscall(SYS_pidfd_open, ::getpid(), 0)));
  if (!self.valid()) return false;
  return UniqueFd(static_cast<int>(::syscall(SYS_pidfd_getfd, self.get(), self.get(), 0))).valid();
}

// An id near the upper bound is hardly ever taken; when it is, the right to ask was there.
bool set_tid() {
  const auto text = read_proc("/proc/sys/kernel/pid_max");
  const pid_t unusual = text ? static_cast<pid_t>(std::stol(*text)) - 7 : 32761;
  const ProbeChild child(unusual);
  return child.error() == 0 || child.error() == EEXIST;
}

bool rseq_configuration() {
  const ProbeChild child;
  if (child.error() != 0 || ::ptrace(PTRACE_SEIZE, child.pid(), nullptr, nullptr) != 0) {
    return false;
  }
  if (::ptrace(PTRACE_INTERRUPT, child.pid(), nullptr, nullptr) != 0) return false;
  while (::waitpid(child.pid(), nullptr, __WALL) < 0 && errno == EINTR) {
  }
  constexpr auto kGetRseq = static_cast<__ptrace_request>(0x420f);
  std::array<uint64_t, 3> configuration{};  // struct ptrace_rseq_configuration: 24 bytes
  return ::ptrace(kGetRseq, child.pid(), sizeof configuration, configuration.data()) > 0;
}

bool can_read(const char* path) {
  const UniqueFd file(::open(path, O_RDONLY | O_CLOEXEC));
  uint64_t word = 0;
  return file.valid() && ::read(file.get(), &word, sizeof word) == sizeof word;
}

bool bpf() {
  bpf_attr attributes{};
  attributes.map_type = BPF_MAP_TYPE_ARRAY;
  attributes.key_size = 4;
  attributes.value_size = 8;
  attributes.max_entries = 1;
  return UniqueFd(
             static_cast<int>(::syscall(SYS_bpf, BPF_MAP_CREATE, &attributes, sizeof attributes)))
      .valid();
}

// As a socket that was never connected takes it.
bool tcp_repair() {
  const UniqueFd socket(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const int on = 1;
  return socket.valid() && ::setsockopt(socket.get(), IPPROTO_TCP, TCP_REPAIR, &on, sizeof on) == 0;
}

bool has_capability(int number) {
  const auto status = read_proc("/proc/self/status");
  const auto mask = status ? field_of(*status, "CapEff") : std::nullopt;
  return mask && (std::stoull(std::string(*mask), nullptr, 16) >> number & 1) != 0;
}

// Only looks: whoever started a kdamond may rely on it.
bool damon_in_use() {
  for (const int pid : numeric_entries("/proc").value_or(std::vector<int>())) {
    const auto name = read_proc("/proc/" + std::to_string(pid) + "/comm");
    if (name && name->starts_with("kdamond")) return true;
  }
  return false;
}

std::string cgroup_version() {
  const auto mounts = read_proc("/proc/self/mountinfo");
  const bool v1 = mounts && mounts->find(" - cgroup ") != std::string::npos;
  const bool v2 = mounts && mounts->find(" - cgroup2 ") != std::string::npos;
  if (v1 && v2) return "v1 and v2";
  if (v1) return "v1";
  return v2 ? "v2" : "none";
}

bool attempt(bool (*probe)()) {
  try {
    return probe();
  } catch (const SysError&) {
    return false;
  }
}

}  // namespace

std::vector<KernelFeature> probe_kernel_features() {
  std::vector<KernelFeature> features = {
      {"pagemapScan", attempt(pagemap_scan)},
      {"pidfdGetfd", attempt(pidfd_getfd)},
      {"setTid", attempt(set_tid)},
      {"rseqConfiguration", attempt(rseq_configuration)},
      {"idleBitmap", can_read("/sys/kernel/mm/page_idle/bitmap")},
      {"bpf", attempt(bpf)},
      {"btf", can_read("/sys/kernel/btf/vmlinux")},
      {"damonInUse", attempt(damon_in_use)},
      {"tcpRepair", attempt(tcp_repair)},
      {"cgroup", cgroup_version()},
      {"capSysPtrace", has_capability(CAP_SYS_PTRACE)},
      {"capSysAdmin", has_capability(CAP_SYS_ADMIN)},
      {"capSysResource", has_capability(CAP_SYS_RESOURCE)},
      {"capNetAdmin", has_capability(CAP_NET_ADMIN)}};
  if (const auto scope = read_proc("/proc/sys/kernel/yama/ptrace_scope")) {
    features.push_back({"yamaScope", std::stoi(*scope)});
  }
  return features;
}

}  // namespace replpage
