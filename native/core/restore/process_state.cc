#include "core/restore/process_state.h"

#include <fcntl.h>
#include <linux/futex.h>
#include <linux/prctl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/time.h>

#include <array>
#include <ctime>
#include <optional>

#include "core/base/clock.h"
#include "core/base/clock_offsets.h"
#include "core/base/procfs.h"
#include "core/base/sys_error.h"
#include "core/restore/thread_state.h"

namespace replpage {
namespace {

// Newer than Debian 12's headers (include/uapi/linux/prctl.h).
constexpr int kPrSetMdwe = 65;
constexpr int kPrTimerCreateRestoreIds = 77;
constexpr int kRestoreIdsOff = 0, kRestoreIdsOn = 1, kRestoreIdsGet = 2;

constexpr int32_t kDummyTimersMax = 1024;  // without kPrTimerCreateRestoreIds
constexpr int kDumpableNo = 0, kDumpableYes = 1;
constexpr std::string_view kDeleted = " (deleted)";

// Stores a value that is known only when the batch runs at `offset` of its data. No system call
// does just that; the robust list is set to its own value later (thread_state.h).
void add_store(BatchArgument value, uint64_t offset, SyscallBatch& batch) {
  const uint64_t length = batch.put_value<uint64_t>(0);
  batch.add("memory layout", SYS_set_robust_list, {value, sizeof(robust_list_head)});
  batch.add("memory layout", SYS_get_robust_list,
            {0, BatchArgument::data(offset), BatchArgument::data(length)});
}

prctl_mm_map layout_map(const MemoryLayout& layout) {
  prctl_mm_map map{};
  map.start_code = layout.start_code;
  map.end_code = layout.end_code;
  map.start_data = layout.start_data;
  map.end_data = layout.end_data;
  map.start_brk = layout.start_brk;
  map.brk = layout.brk;
  map.start_stack = layout.start_stack;
  map.arg_start = layout.arg_start;
  map.arg_end = layout.arg_end;
  map.env_start = layout.env_start;
  map.env_end = layout.env_end;
  map.auxv_size = static_cast<uint32_t>(layout.auxv.size() * sizeof(uint64_t));
  return map;
}

// All in one PR_SET_MM_MAP: setting the parts one by one would need CAP_SYS_RESOURCE (prctl(2)). An
// executable that is mapped cannot be set once more (EBUSY, replace_mm_exe_file in kernel/fork.c).
void add_layout(const ProcessImage& process, SyscallBatch& batch) {
  const std::vector<uint64_t>& auxv = process.layout.auxv;
  const uint64_t vector =
      batch.put({reinterpret_cast<const uint8_t*>(auxv.data()), auxv.size() * sizeof(uint64_t)});
  struct {
    prctl_mm_map map;
    uint64_t overwritten = 0;  // by the upper half of the descriptor
  } data{.map = layout_map(process.layout)};
  data.map.exe_fd = ~0u;
  const uint64_t map = batch.put_value(data);
  const bool has_executable =
      read_link("/proc/" + std::to_string(process.pid) + "/exe") == process.executable;
  std::optional<size_t> file;
  if (!has_executable) {
    const uint64_t path = batch.put_text(process.executable);
    file = batch.add("executable", SYS_open, {BatchArgument::data(path), O_RDONLY | O_CLOEXEC, 0});
  }
  if (!auxv.empty()) {
    add_store(BatchArgument::data(vector), map + offsetof(prctl_mm_map, auxv), batch);
    // The store covers 8 bytes: nothing beyond the pointer.
    static_assert(sizeof(prctl_mm_map::auxv) == sizeof(uint64_t));
  }
  if (file) {
    add_store(BatchArgument::result_of(*file), map + offsetof(prctl_mm_map, exe_fd), batch);
  }
  batch.add("memory layout and executable", SYS_prctl,
            {PR_SET_MM, PR_SET_MM_MAP, BatchArgument::data(map), sizeof(prctl_mm_map), 0});
  if (file) batch.add("executable", SYS_close, {BatchArgument::result_of(*file)});
}

void add_action(const ProcessImage& process, int signal, SyscallBatch& batch) {
  const auto index = static_cast<size_t>(signal) - 1;
  if (index >= process.actions.size()) return;
  batch.add("signal action", SYS_rt_sigaction,
            {signal, BatchArgument::data(batch.put_value(process.actions[index])), 0, 8});
}

// But for SIGCHLD: with that ignored, zombies could not be made.
void add_actions(const ProcessImage& process, SyscallBatch& batch) {
  for (int signal = 1; signal <= static_cast<int>(process.actions.size()); ++signal) {
    if (signal == SIGKILL || signal == SIGSTOP || signal == SIGCHLD) continue;
    add_action(process, signal, batch);
  }
}

void add_directories(const ProcessImage& process, int directory, SyscallBatch& batch) {
  if (directory >= 0) {
    batch.add("working directory", SYS_fchdir, {directory});
    batch.add("close", SYS_close, {directory});
  } else {
    batch.add("working directory", SYS_chdir,
              {BatchArgument::data(batch.put_text(process.working_directory))});
  }
  if (process.root_directory != "/") {
    batch.add("root directory", SYS_chroot,
              {BatchArgument::data(batch.put_text(process.root_directory))});
  }
}

timeval microseconds(uint64_t us) {
  return {.tv_sec = static_cast<time_t>(us / 1'000'000),
          .tv_usec = static_cast<suseconds_t>(us % 1'000'000)};
}

timespec nanoseconds(uint64_t ns) {
  return {.tv_sec = static_cast<time_t>(ns / 1'000'000'000),
          .tv_nsec = static_cast<long>(ns % 1'000'000'000)};
}

void add_interval_timers(const ProcessImage& process, SyscallBatch& batch) {
  for (size_t which = 0; which < process.interval_timers.size(); ++which) {
    const IntervalTimer& timer = process.interval_timers[which];
    // No time is left of a periodic one whose signal waits to be delivered.
    const uint64_t left_us = timer.value_us != 0 ? timer.value_us : timer.interval_us;
    if (left_us == 0) continue;
    const itimerval value{.it_interval = microseconds(timer.interval_us),
                          .it_value = microseconds(left_us)};
    batch.add("interval timer", SYS_setitimer,
              {which, BatchArgument::data(batch.put_value(value)), 0});
  }
}

// The kernel's struct sigevent: glibc's has no name for the thread.
struct KernelSigevent {
  uint64_t value = 0;
  int32_t signal = 0, notify = 0, thread = 0;
  std::array<int32_t, 11> padding{};
};
static_assert(sizeof(KernelSigevent) == 64);

// Timer numbers count up from 0 in a new process, so those in between are made and deleted.
void add_dummy_timers(int32_t from, int32_t to, SyscallBatch& batch) {
  if (to - from > kDummyTimersMax) throw SysError("restore timer " + std::to_string(to), ENOTSUP);
  for (int32_t number = from; number < to; ++number) {
    const uint64_t id = batch.put_value<int64_t>(0);
    batch.add("timer number", SYS_timer_create, {CLOCK_MONOTONIC, 0, BatchArgument::data(id)});
    batch.add("timer number", SYS_timer_delete, {BatchArgument::load32(id)});
  }
}

// Its deadline stays what it was, since the program's clock went on, too: by the clock itself where
// nobody can set that, so that a period keeps its beat.
void add_timer_value(const PosixTimer& timer, uint64_t since_ns, SyscallBatch& batch) {
  itimerspec value{.it_interval = nanoseconds(timer.interval_ns), .it_value = {}};
  const bool by_clock = timer.clock == CLOCK_MONOTONIC || timer.clock == CLOCK_BOOTTIME;
  if (by_clock) {
    const auto ahead = static_cast<uint64_t>(clocks_of_children().of(timer.clock));
    const uint64_t captured = clock_ns(timer.clock) + ahead - since_ns;
    value.it_value = nanoseconds(captured + timer.value_ns);
  } else if (timer.clock == CLOCK_REALTIME || timer.clock == CLOCK_TAI) {
    value.it_value = nanoseconds(timer.value_ns > since_ns ? timer.value_ns - since_ns : 1);
  } else {
    value.it_value = nanoseconds(timer.value_ns);
  }
  batch.add(
      "timer value", SYS_timer_settime,
      {timer.id, by_clock ? TIMER_ABSTIME : 0, BatchArgument::data(batch.put_value(value)), 0});
}

void add_posix_timer(const PosixTimer& timer, uint64_t since_ns, SyscallBatch& batch) {
  const KernelSigevent event{.value = timer.signal_value,
                             .signal = timer.signal,
                             .notify = timer.notify,
                             .thread = timer.thread};
  batch.add("timer", SYS_timer_create,
            {timer.clock, BatchArgument::data(batch.put_value(event)),
             BatchArgument::data(batch.put_value<int64_t>(timer.id))});
  if (timer.value_ns != 0) add_timer_value(timer, since_ns, batch);
}

void add_posix_timers(const ProcessImage& process, SyscallBatch& batch) {
  if (process.posix_timers.empty()) return;
  const bool by_number = ::prctl(kPrTimerCreateRestoreIds, kRestoreIdsGet, 0, 0, 0) >= 0;
  if (by_number) {
    batch.add("timer numbers", SYS_prctl, {kPrTimerCreateRestoreIds, kRestoreIdsOn, 0, 0, 0});
  }
  const uint64_t since_ns = time_since_capture_ns(process);
  int32_t next = 0;
  for (const PosixTimer& timer : process.posix_timers) {
    if (!by_number) add_dummy_timers(next, timer.id, batch);
    add_posix_timer(timer, since_ns, batch);
    next = timer.id + 1;
  }
  if (by_number) {
    batch.add("timer numbers", SYS_prctl, {kPrTimerCreateRestoreIds, kRestoreIdsOff, 0, 0, 0});
  }
}

void add_pending(const ProcessImage& process, SyscallBatch& batch) {
  for (const SignalInfo& info : process.pending) {
    if (is_given_last(info)) continue;
    batch.add("pending signal of the process", SYS_rt_sigqueueinfo,
              {process.pid, signal_of(info), BatchArgument::data(batch.put_value(info))});
  }
}

// By the process itself, which may always lower its limits, and while it may raise them. The limit
// for descriptors may have been raised for their sake.
void add_limits(const ProcessImage& process, const std::vector<ResourceLimit>& current,
                SyscallBatch& batch) {
  for (size_t resource = 0; resource < process.limits.size(); ++resource) {
    const bool known = resource < current.size() && resource != RLIMIT_NOFILE;
    if (known && current[resource] == process.limits[resource]) continue;
    const rlimit64 limit{.rlim_cur = process.limits[resource].soft,
                         .rlim_max = process.limits[resource].hard};
    batch.add("resource limit", SYS_prlimit64,
              {0, resource, BatchArgument::data(batch.put_value(limit)), 0});
  }
}

// As the shell's `ulimit` and getrlimit(2) know them.
constexpr std::array<const char*, RLIM_NLIMITS> kLimitNames = {
    "cpu",     "fsize", "data",  "stack",      "core",     "rss",  "nproc",  "nofile",
    "memlock", "as",    "locks", "sigpending", "msgqueue", "nice", "rtprio", "rttime"};

std::string limit_text(uint64_t limit) {
  return limit == RLIM64_INFINITY ? "unlimited" : std::to_string(limit);
}

void write_number(const std::string& path, int64_t number) {
  const UniqueFd file = open_path(path, O_WRONLY);
  const std::string text = std::to_string(number);
  if (::write(file.get(), text.data(), text.size()) < 0) {
    throw SysError::from_errno("write", on_path(path));
  }
}

}  // namespace

void add_build_state(const ProcessImage& process, SyscallBatch& batch) {
  // Fails when it is so already (a shape that comes twice).
  if (process.session == process.pid) {
    batch.add("session", SYS_setsid, {}, false);
  } else if (process.process_group == process.pid) {
    batch.add("process group", SYS_setpgid, {0, 0}, false);
  }
  if (process.thp_disabled) {
    batch.add("huge pages", SYS_prctl, {PR_SET_THP_DISABLE, 1, 0, 0, 0});
  }
  // Each registration of membarrier(2) has a command of its own, whose bits the kernel reports.
  for (uint32_t bit = 1; bit != 0; bit <<= 1) {
    if ((process.membarrier & bit) != 0) batch.add("membarrier", SYS_membarrier, {bit, 0, 0});
  }
}

bool is_removed(std::string_view path) { return path.ends_with(kDeleted); }

void add_lasting_state(const ProcessImage& process, SyscallBatch& batch) {
  add_layout(process, batch);
  add_actions(process, batch);
  batch.add("umask", SYS_umask, {process.file_mode_mask});
}

bool lasts_alike(const ProcessImage& one, const ProcessImage& other) {
  return one.executable == other.executable && one.layout == other.layout &&
         one.actions == other.actions && one.file_mode_mask == other.file_mode_mask;
}

void add_passing_state(const ProcessImage& process, int directory,
                       const std::vector<ResourceLimit>& current, SyscallBatch& batch) {
  // A group whose leader is gone, or outside, cannot be joined again.
  if (process.process_group != process.pid && process.session != process.pid) {
    batch.add("process group", SYS_setpgid, {0, process.process_group}, false);
  }
  // Forbidden where pages are cold (PageWriter).
  batch.add("huge pages", SYS_prctl, {PR_SET_THP_DISABLE, process.thp_disabled, 0, 0, 0});
  batch.add("personality", SYS_personality, {process.personality});
  batch.add("child subreaper", SYS_prctl, {PR_SET_CHILD_SUBREAPER, process.child_subreaper});
  add_action(process, SIGCHLD, batch);
  add_directories(process, directory, batch);
  if (process.mlock_future != 0) {
    batch.add("mlockall", SYS_mlockall, {process.mlock_future});
  }
  add_interval_timers(process, batch);
  add_posix_timers(process, batch);
  add_pending(process, batch);
  add_limits(process, current, batch);
}

uint64_t time_since_capture_ns(const ProcessImage& process) {
  const uint64_t now = now_ns();
  const bool known = process.captured_ns != 0 && process.captured_ns <= now;
  return known ? now - process.captured_ns : 0;
}

void add_process_state(const ProcessImage& process, int directory, SyscallBatch& batch) {
  add_lasting_state(process, batch);
  add_passing_state(process, directory, {}, batch);
}

void add_final_state(const ProcessImage& process, SyscallBatch& batch) {
  if (process.deny_write_execute != 0) {
    batch.add("memory deny write execute", SYS_prctl,
              {kPrSetMdwe, process.deny_write_execute, 0, 0, 0});
  }
  // 2 (suid_dumpable) cannot be asked for: prctl(2). It differs from 0 only in core dumps as root.
  const int dumpable = process.dumpable == kDumpableYes ? kDumpableYes : kDumpableNo;
  batch.add("dumpable", SYS_prctl, {PR_SET_DUMPABLE, dumpable, 0, 0, 0});
}

std::vector<ResourceLimit> limits_of(pid_t pid) {
  std::vector<ResourceLimit> limits(RLIM_NLIMITS);
  for (size_t resource = 0; resource < limits.size(); ++resource) {
    rlimit64 limit{};
    if (::syscall(SYS_prlimit64, pid, resource, nullptr, &limit) != 0) return {};
    limits[resource] = {.soft = limit.rlim_cur, .hard = limit.rlim_max};
  }
  return limits;
}

void check_process_rights(const ProcessImage& process) {
  for (size_t resource = 0; resource < process.limits.size(); ++resource) {
    rlimit64 own{};
    if (::syscall(SYS_prlimit64, 0, resource, nullptr, &own) != 0) continue;
    const ResourceLimit& wanted = process.limits[resource];
    if (wanted.hard <= own.rlim_max || own.rlim_max == RLIM64_INFINITY) continue;
    // Sets what is there already, but only who may raise it learns so.
    const rlimit64 raised{.rlim_cur = own.rlim_cur, .rlim_max = wanted.hard};
    if (::syscall(SYS_prlimit64, 0, resource, &raised, nullptr) != 0) {
      const int error = errno;
      const std::string name =
          resource < kLimitNames.size() ? kLimitNames.at(resource) : std::to_string(resource);
      throw SysError("give the replica the hard limit of its primary on " + name + " (" +
                         limit_text(wanted.hard) + "; the daemon has " + limit_text(own.rlim_max) +
                         " and lacks CAP_SYS_RESOURCE: start it with that right or limit, or lower "
                         "the primary's with prlimit)",
                     error);
    }
    ::syscall(SYS_prlimit64, 0, resource, &own, nullptr);
  }
}

void apply_outer_state(pid_t pid, const ProcessImage& process) {
  const std::string directory = "/proc/" + std::to_string(pid);
  write_number(directory + "/oom_score_adj", process.oom_score_adj);
  write_number(directory + "/coredump_filter", process.core_dump_filter);
}

}  // namespace replpage
