#include <elf.h>
#include <fcntl.h>
#include <linux/kcmp.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <ctime>

#include "core/base/procfs.h"
#include "core/base/sys_error.h"
#include "core/image/kernel_reader.h"
#include "core/image/posix_timers.h"
#include "core/image/process_capture.h"
#include "core/image/task_status.h"

namespace replpage {
namespace {

constexpr uint64_t kFlagExiting = 0x00000004;       // PF_EXITING of include/linux/sched.h
constexpr uint64_t kFlagKernelThread = 0x00200000;  // PF_KTHREAD of include/linux/sched.h
constexpr size_t kNamespaceDepthMax = 2;            // ours and one below it
constexpr std::string_view kDeleted = " (deleted)";

std::string proc_path(pid_t pid, const char* file) { return "/proc/" + std::to_string(pid) + file; }

// Collects refusals of one process.
class Finder {
 public:
  Finder(pid_t pid, Refusals& refusals) : pid_(pid), refusals_(refusals) {}

  void refuse(std::string object, std::string kind, std::string why) {
    refusals_.push_back({.pid = static_cast<int32_t>(pid_),
                         .object = std::move(object),
                         .kind = std::move(kind),
                         .why = std::move(why)});
  }
  void refuse(Refusal refusal) { refusals_.push_back(std::move(refusal)); }
  void refuse_process(std::string kind, std::string why) {
    refuse("process " + std::to_string(pid_), std::move(kind), std::move(why));
  }
  void refuse_thread(pid_t tid, std::string kind, std::string why) {
    refuse("thread " + std::to_string(tid), std::move(kind), std::move(why));
  }
  [[nodiscard]] pid_t pid() const { return pid_; }

 private:
  pid_t pid_;
  Refusals& refusals_;
};

// Whether all of its threads have left user code for good.
bool is_wholly_ending(pid_t pid) {
  const auto tids = numeric_entries(proc_path(pid, "/task"));
  return !tids || std::all_of(tids->begin(), tids->end(), [](pid_t tid) {
    const auto stat = read_task_stat(tid);
    return !stat || (stat->flags & kFlagExiting) != 0;
  });
}

// False when nothing else about the process is worth looking at.
bool check_kind(Finder& finder, const TaskStatus& status) {
  const auto stat = read_task_stat(finder.pid());
  if (!stat) return false;
  if (status.kernel_thread || (stat->flags & kFlagKernelThread) != 0) {
    finder.refuse_process("kernel thread", "it is part of the kernel and has no memory of its own");
    return false;
  }
  if (finder.pid() == ::getpid()) {
    finder.refuse_process("replpage daemon", "the daemon cannot stop itself to copy itself");
    return false;
  }
  if (!status.has_memory) {
    // A child that ends just now is none of those: its end will be told.
    if (is_wholly_ending(finder.pid())) return false;
    finder.refuse(no_main_thread(finder.pid()));
    return false;
  }
  return true;
}

bool is_own_thread(pid_t tid) {
  return ::access(("/proc/self/task/" + std::to_string(tid)).c_str(), F_OK) == 0;
}

void check_thread_status(Finder& finder, pid_t tid, const TaskStatus& status) {
  if (status.tracer != 0 && !is_own_thread(status.tracer)) {
    finder.refuse_thread(
        tid, "traced thread",
        "process " + std::to_string(status.tracer) + " (a debugger?) is attached to it already");
  }
  if (status.seccomp_mode != 0) {
    finder.refuse_thread(tid, "seccomp filter", "system call filters cannot be rebuilt yet");
  }
  if (status.shadow_stack) {
    finder.refuse_thread(tid, "shadow stack",
                         "shadow stacks of control-flow enforcement cannot be rebuilt yet");
  }
}

void check_namespaces(Finder& finder, const TaskStatus& status) {
  const auto user = read_link(proc_path(finder.pid(), "/ns/user"));
  if (user && user != read_link("/proc/self/ns/user")) {
    finder.refuse_process("user namespace", "the replica would have other rights than the process");
  }
  const auto time = read_link(proc_path(finder.pid(), "/ns/time"));
  if (time && time != read_link(proc_path(finder.pid(), "/ns/time_for_children"))) {
    finder.refuse_process("time namespace", "its children are made with other clocks than its own");
  }
  const auto own = read_link(proc_path(finder.pid(), "/ns/pid"));
  const auto children = read_link(proc_path(finder.pid(), "/ns/pid_for_children"));
  // There is no link before the first child of a new namespace.
  if (own && own != children) {
    finder.refuse_process("PID namespace", "its children are made in another PID namespace");
  }
  if (status.thread_ids.size() > kNamespaceDepthMax) {
    finder.refuse_process("PID namespace", "PID namespaces inside each other cannot be rebuilt");
  } else if (status.thread_ids.size() > 1 && status.thread_ids.back() == 1) {
    finder.refuse_process("PID namespace init",
                          "pid 1 of a container is the keeper's place in a replica; protect the "
                          "program that it started instead");
  }
}

// A security module's label (AppArmor, SELinux) other than ours would be lost.
void check_label(Finder& finder) {
  const auto label = [](const std::string& path) -> std::optional<std::string> {
    try {
      return read_proc(path);
    } catch (const SysError&) {
      return std::nullopt;  // EINVAL: no module keeps one
    }
  };
  const auto theirs = label(proc_path(finder.pid(), "/attr/current"));
  const auto ours = label("/proc/self/attr/current");
  if (theirs && ours && *theirs != *ours) {
    finder.refuse_process("security label",
                          "the replica would run under another security module label");
  }
}

void check_executable(Finder& finder) {
  const auto target = read_link(proc_path(finder.pid(), "/exe"));
  if (!target) return;
  if (target->ends_with(kDeleted)) {
    finder.refuse("executable " + *target, "deleted executable",
                  "the replica needs the file that the process was started from; restart it");
    return;
  }
  const UniqueFd file(::open(proc_path(finder.pid(), "/exe").c_str(), O_RDONLY | O_CLOEXEC));
  std::array<uint8_t, EI_NIDENT> identity{};
  if (!file.valid() || ::read(file.get(), identity.data(), identity.size()) != EI_NIDENT) return;
  if (identity[EI_CLASS] != ELFCLASS64) {
    finder.refuse("executable " + *target, "32-bit program", "only 64-bit programs are supported");
  }
}

void check_root(Finder& finder) {
  const auto root = read_link(proc_path(finder.pid(), "/root"));
  if (!root || !root->ends_with(kDeleted)) return;
  finder.refuse("root directory " + *root, "removed root directory",
                "no path leads to it, so the replica could not have it");
}

void check_maps(Finder& finder) {
  const auto maps = read_proc(proc_path(finder.pid(), "/maps"));
  if (!maps) return;
  for (size_t at = 0; (at = maps->find("/[aio]", at)) != std::string::npos; ++at) {
    const size_t line = maps->rfind('\n', at) + 1;
    finder.refuse("mapping 0x" + maps->substr(line, maps->find(' ', line) - line), "AIO context",
                  "requests of io_setup(2) contexts cannot be carried over");
  }
}

bool differ(pid_t a, pid_t b, int type) { return ::syscall(SYS_kcmp, a, b, type, 0, 0) > 0; }

// A thread that ends has lost its memory before its files (do_exit in kernel/exit.c). Asked last,
// since it may end at any moment; not known of a leader that has ended itself.
bool is_leaving(pid_t leader, pid_t tid) {
  return differ(leader, tid, KCMP_VM) && read_link(proc_path(leader, "/exe"));
}

void check_sharing(Finder& finder, const std::vector<int>& tids) {
  for (const int tid : tids) {
    if (differ(finder.pid(), tid, KCMP_FS) && !is_leaving(finder.pid(), tid)) {
      finder.refuse_thread(tid, "own working directory",
                           "threads with directories of their own cannot be rebuilt yet");
    }
    if (differ(finder.pid(), tid, KCMP_FILES) && !is_leaving(finder.pid(), tid)) {
      finder.refuse_thread(tid, "own descriptor table",
                           "threads with descriptors of their own cannot be rebuilt yet");
    }
  }
}

void check_semaphores(Finder& finder) {
  KernelReader* const reader = KernelReader::instance();
  if (reader == nullptr || !reader->has_semaphore_undos(finder.pid())) return;
  finder.refuse_process("semaphore undo list",
                        "SEM_UNDO operations of SysV semaphores cannot be carried over");
}

void check_timers(Finder& finder) {
  const auto timers = list_posix_timers(finder.pid(), {});
  if (!timers) return;
  for (const PosixTimer& timer : *timers) {
    if (timer.clock >= 0 && timer.clock != CLOCK_THREAD_CPUTIME_ID) continue;
    finder.refuse("timer " + std::to_string(timer.id), "timer on a CPU clock",
                  "timers on the CPU time of a thread or of another process cannot be rebuilt");
  }
}

// Tells only of threads that the caller has stopped; others are looked at again when captured.
void check_stopped_thread(Finder& finder, pid_t tid) {
  user_regs_struct registers{};
  iovec area{&registers, sizeof registers};
  if (::ptrace(PTRACE_GETREGSET, tid, NT_PRSTATUS, &area) == 0 &&
      area.iov_len != sizeof registers) {
    finder.refuse_thread(tid, "32-bit code", "only 64-bit programs are supported");
  }
  constexpr int kGetDispatch = 0x4211;  // PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG, Linux 6.4
  struct {
    uint64_t mode, selector, offset, length;
  } dispatch{};
  if (::ptrace(static_cast<__ptrace_request>(kGetDispatch), tid, sizeof dispatch, &dispatch) == 0 &&
      dispatch.mode != 0) {
    finder.refuse_thread(tid, "system call user dispatch",
                         "calls that are redirected to the program cannot be rebuilt yet");
  }
}

}  // namespace

Refusal no_main_thread(pid_t host_pid) {
  return {.pid = static_cast<int32_t>(host_pid),
          .object = "process " + std::to_string(host_pid),
          .kind = "process without a main thread",
          .why =
              "its main thread has ended (pthread_exit in main) while others run on, and such a "
              "process cannot be rebuilt yet"};
}

void find_clock_refusals(pid_t root, pid_t host_pid, Refusals& refusals) {
  const auto time = read_link(proc_path(root, "/ns/time"));
  const auto theirs = read_link(proc_path(host_pid, "/ns/time"));
  if (!time || !theirs || *theirs == *time) return;
  Finder(host_pid, refusals)
      .refuse_process("time namespace", "it has other clocks than the rest of the group");
}

void find_process_refusals(pid_t host_pid, Refusals& refusals, RefusalScope scope) {
  KernelReader::instance();  // takes its time now, when nothing is frozen yet
  Finder finder(host_pid, refusals);
  const auto status = read_task_status(host_pid);
  if (!status || !check_kind(finder, *status)) return;
  check_namespaces(finder, *status);
  check_label(finder);
  if (scope == RefusalScope::kFirst) {
    check_executable(finder);
    check_root(finder);
    check_maps(finder);  // an epoch says so itself
  }
  check_timers(finder);
  check_semaphores(finder);
  const auto tids = numeric_entries(proc_path(host_pid, "/task"));
  if (!tids) return;
  check_sharing(finder, *tids);
  for (const int tid : *tids) {
    if (const auto thread = read_task_status(tid)) check_thread_status(finder, tid, *thread);
    check_stopped_thread(finder, tid);
  }
}

}  // namespace replpage
