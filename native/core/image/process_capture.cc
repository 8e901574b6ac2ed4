#include "core/image/process_capture.h"

#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <csignal>
#include <cstring>

#include "core/base/clock.h"
#include "core/base/page.h"
#include "core/base/procfs.h"
#include "core/base/sys_error.h"
#include "core/image/injected_state.h"
#include "core/image/interrupted_call.h"
#include "core/image/kernel_reader.h"
#include "core/image/posix_timers.h"
#include "core/image/ptrace_state.h"
#include "core/image/task_status.h"

namespace replpage {
namespace {

constexpr size_t kSignals = 64;
constexpr uint64_t kHandlerDefault = 0, kHandlerIgnore = 1;  // SIG_DFL, SIG_IGN

std::string proc_path(pid_t pid, const char* file) { return "/proc/" + std::to_string(pid) + file; }

// "Max cpu time             unlimited            unlimited            seconds": lines in the order
// of the numbers, columns of fixed width (proc_pid_limits in fs/proc/base.c).
std::vector<ResourceLimit> parse_limits(std::string_view text) {
  constexpr size_t kSoftColumn = 26, kHardColumn = 47;
  const auto number = [](std::string_view line, size_t column) {
    uint64_t value = RLIM64_INFINITY;  // left as it is by "unlimited"
    if (column >= line.size()) throw FormatError("/proc/PID/limits has a short line");
    std::from_chars(line.data() + column, line.data() + line.size(), value);
    return value;
  };
  std::vector<ResourceLimit> limits;
  text.remove_prefix(std::min(text.find('\n') + 1, text.size()));
  while (!text.empty()) {
    const size_t end = std::min(text.find('\n'), text.size());
    const std::string_view line = text.substr(0, end);
    limits.push_back({.soft = number(line, kSoftColumn), .hard = number(line, kHardColumn)});
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return limits;
}

// prlimit(2) of another user's process needs CAP_SYS_RESOURCE; the file does not, but is slow.
bool read_limits(pid_t pid, bool slow, std::vector<ResourceLimit>& limits) {
  limits.resize(RLIM_NLIMITS);
  for (size_t resource = 0; resource < limits.size(); ++resource) {
    rlimit64 limit{};
    if (::syscall(SYS_prlimit64, pid, resource, nullptr, &limit) == 0) {
      limits[resource] = {.soft = limit.rlim_cur, .hard = limit.rlim_max};
      continue;
    }
    if (errno == ESRCH) return false;
    if (errno != EPERM) throw SysError::from_errno("read resource limits", on_pid(pid));
    if (!slow) return true;
    const auto text = read_proc(proc_path(pid, "/limits"));
    if (text) limits = parse_limits(*text);
    return text.has_value();
  }
  return true;
}

// Pairs up to and with AT_NULL; the kernel's vector has room for more.
bool read_auxv(pid_t pid, std::vector<uint64_t>& auxv) {
  const auto bytes = read_proc(proc_path(pid, "/auxv"));
  if (!bytes) return false;
  auxv.resize(bytes->size() / sizeof(uint64_t));
  std::memcpy(auxv.data(), bytes->data(), auxv.size() * sizeof(uint64_t));
  return true;
}

// End of the last [heap] line, which is the break rounded up to a page.
std::optional<uint64_t> find_break(pid_t pid, uint64_t start) {
  const auto maps = read_proc(proc_path(pid, "/maps"));
  if (!maps) return std::nullopt;
  uint64_t end = start;
  for (size_t at = 0; (at = maps->find("[heap]", at)) != std::string::npos; ++at) {
    const size_t line = maps->rfind('\n', at) + 1;  // npos + 1 is 0
    const size_t dash = maps->find('-', line);
    std::from_chars(maps->data() + dash + 1, maps->data() + at, end, 16);
  }
  return end;
}

std::optional<int64_t> read_number(const std::string& path, int base) {
  const auto text = read_proc(path);
  if (!text) return std::nullopt;
  int64_t number = 0;
  std::from_chars(text->data(), text->data() + text->size(), number, base);
  return number;
}

bool read_paths(pid_t pid, ProcessImage& image) {
  auto executable = read_link(proc_path(pid, "/exe"));
  auto directory = read_link(proc_path(pid, "/cwd"));
  auto root = read_link(proc_path(pid, "/root"));
  if (!executable || !directory || !root) return false;
  image.executable = std::move(*executable);
  image.working_directory = std::move(*directory);
  image.root_directory = std::move(*root);
  return true;
}

bool read_layout(pid_t pid, ProcessImage& image) {
  const auto stat = read_task_stat(pid);
  if (!stat) return false;
  MemoryLayout layout = stat->layout;
  layout.brk = image.layout.brk;
  if (!read_auxv(pid, layout.auxv)) return false;
  image.layout = std::move(layout);
  image.exit_signal = stat->exit_signal;
  return true;
}

// Without injection only the kinds of actions are known (SigIgn and SigCgt). Where a kind differs
// from what is known the action changed: to the default, to be ignored, or to an unknown handler,
// for which the old one is kept if there was one.
void update_action_kinds(const TaskStatus& status, std::vector<SignalAction>& actions) {
  actions.resize(kSignals);
  for (size_t index = 0; index < kSignals; ++index) {
    const uint64_t bit = uint64_t{1} << index;
    if ((status.caught_signals & bit) != 0) continue;
    const bool ignored = (status.ignored_signals & bit) != 0;
    const uint64_t handler = ignored ? kHandlerIgnore : kHandlerDefault;
    if (actions[index].handler != handler) actions[index] = {.handler = handler};
  }
}

// `handled`: bit 0 for signal 1.
bool read_slow_state(pid_t pid, ProcessImage& image, uint64_t& handled) {
  const auto status = read_task_status(pid);
  if (!status) return false;
  image.process_group = status->process_group;
  image.session = status->session;
  image.file_mode_mask = status->file_mode_mask;
  image.thp_disabled = status->thp_disabled;
  update_action_kinds(*status, image.actions);
  handled = status->caught_signals;
  const auto personality = read_number(proc_path(pid, "/personality"), 16);
  const auto oom_score_adj = read_number(proc_path(pid, "/oom_score_adj"), 10);
  const auto core_dump_filter = read_number(proc_path(pid, "/coredump_filter"), 16);
  if (!personality || !oom_score_adj || !core_dump_filter) return false;
  image.core_dump_filter = static_cast<uint32_t>(*core_dump_filter);
  image.personality = static_cast<uint32_t>(*personality);
  image.oom_score_adj = static_cast<int32_t>(*oom_score_adj);
  return read_paths(pid, image) && read_layout(pid, image);
}

void apply_hidden_state(HiddenProcessState state, ProcessImage& image) {
  image.actions = std::move(state.actions);
  image.interval_timers = state.interval_timers;
  image.posix_timers = std::move(state.posix_timers);
  image.layout.brk = state.brk;
  image.dumpable = state.dumpable;
  image.child_subreaper = state.child_subreaper;
  image.membarrier = state.membarrier;
  image.deny_write_execute = state.deny_write_execute;
}

// What is known without asking the process: the timers' names from /proc, their values by the time
// that passed, and the break from the memory map.
bool estimate_hidden_state(const ProcessCaptureInput& input, std::vector<PosixTimer> timers,
                           ProcessImage& image) {
  if (input.previous != nullptr) {
    const uint64_t elapsed_ns = image.captured_ns - input.previous->captured_ns;
    age_posix_timers(input.previous->posix_timers, elapsed_ns, timers);
    age_real_timer(elapsed_ns / 1000, image.interval_timers[ITIMER_REAL]);
  }
  image.posix_timers = std::move(timers);
  const auto end = find_break(input.host_pid, image.layout.start_brk);
  if (!end) return false;
  const bool known = page_ceil(image.layout.brk) == *end;
  if (!known) image.layout.brk = *end;
  return true;
}

// The values come from the kernel, signals and threads from /proc, which is slow: most processes
// have no timers.
bool read_timers(pid_t pid, KernelReader& reader, ProcessImage& image) {
  auto values = reader.read_posix_timers(pid);
  if (!values) return false;
  const uint64_t passed_ns = now_ns() - image.captured_ns;
  image.posix_timers.clear();
  if (values->empty()) return true;
  auto timers = list_posix_timers(pid, image.threads);
  if (!timers) return false;
  age_posix_timers(*values, 0, *timers);
  date_back_posix_timers(passed_ns, *timers);
  image.posix_timers = std::move(*timers);
  return true;
}

// What the kernel reader does not read.
bool read_rest(const ProcessCaptureInput& input, bool slow, KernelReader& reader,
               ProcessImage& image) {
  if (slow && input.inject) {
    const auto denied = inject_deny_write_execute(input.host_tids.front(), input.inject);
    if (!denied) return false;
    image.deny_write_execute = *denied;
  }
  return read_timers(input.host_pid, reader, image);
}

// Actions that have become known are asked for again where there is a handler only: each costs a
// call of a stopped process. What else an action may have is of no use without one, but for
// SIGCHLD.
bool read_hidden_state(const ProcessCaptureInput& input, bool slow, uint64_t handled,
                       ProcessImage& image) {
  if (!read_limits(input.host_pid, slow, image.limits)) return false;
  auto timers = list_posix_timers(input.host_pid, image.threads);
  if (!timers) return false;
  if (!slow || !input.inject) return estimate_hidden_state(input, std::move(*timers), image);
  const uint64_t asked =
      input.previous == nullptr ? ~uint64_t{0} : handled | uint64_t{1} << (SIGCHLD - 1);
  HiddenProcessState known;
  known.actions = image.actions;
  known.posix_timers = std::move(*timers);
  auto state = inject_process_state(input.host_tids.front(), input.inject, std::move(known), asked);
  if (!state) return false;
  apply_hidden_state(std::move(*state), image);
  date_back_posix_timers(now_ns() - image.captured_ns, image.posix_timers);
  return true;
}

const ThreadImage* find_thread(const ProcessImage* process, pid_t host_tid) {
  if (process == nullptr) return nullptr;
  const auto found =
      std::find_if(process->threads.begin(), process->threads.end(),
                   [host_tid](const ThreadImage& thread) { return thread.host_tid == host_tid; });
  return found == process->threads.end() ? nullptr : &*found;
}

// SIGCONT stays pending for one that was killed before it noticed, or that blocks it.
bool is_continued(const ProcessImage& image) {
  const auto has = [](const std::vector<SignalInfo>& queue) {
    return std::any_of(queue.begin(), queue.end(),
                       [](const SignalInfo& info) { return signal_of(info) == SIGCONT; });
  };
  return has(image.pending) ||
         std::any_of(image.threads.begin(), image.threads.end(),
                     [&](const ThreadImage& thread) { return has(thread.pending); });
}

bool is_killed(const ProcessCaptureInput& input, pid_t host_tid) {
  return std::find(input.killed.begin(), input.killed.end(), host_tid) != input.killed.end();
}

// The address space of a program that is being executed gets its places last of all
// (load_elf_binary in fs/binfmt_elf.c).
void refuse_half_a_program(const ProcessCaptureInput& input) {
  const auto stat = read_task_stat(input.host_pid);
  if (stat && stat->layout.start_code == 0) {
    throw SysError("capture a program that is only half there", EBUSY, on_pid(input.host_pid));
  }
}

// False when one is gone, as all of them are then: they stood still, and only a kill ends that.
bool capture_threads(const ProcessCaptureInput& input, ProcessImage& image) {
  image.threads.reserve(input.host_tids.size());
  for (const pid_t host_tid : input.host_tids) {
    auto thread = capture_thread({.host_tid = host_tid,
                                  .previous = find_thread(input.previous, host_tid),
                                  .slow_state = input.slow_state,
                                  .killed = is_killed(input, host_tid),
                                  .inject = input.inject,
                                  .kernel_reader = input.kernel_reader});
    if (!thread) return false;
    image.threads.push_back(std::move(*thread));
  }
  return true;
}

// Copies what the last epoch knew, without the threads, which are captured one by one.
ProcessImage start_from(const ProcessImage* previous) {
  ProcessImage image;
  if (previous == nullptr) return image;
  image.pid = previous->pid;
  image.parent = previous->parent;
  image.process_group = previous->process_group;
  image.session = previous->session;
  image.exit_signal = previous->exit_signal;
  image.executable = previous->executable;
  image.working_directory = previous->working_directory;
  image.root_directory = previous->root_directory;
  image.layout = previous->layout;
  image.actions = previous->actions;
  image.limits = previous->limits;
  image.interval_timers = previous->interval_timers;
  image.file_mode_mask = previous->file_mode_mask;
  image.personality = previous->personality;
  image.oom_score_adj = previous->oom_score_adj;
  image.core_dump_filter = previous->core_dump_filter;
  image.dumpable = previous->dumpable;
  image.child_subreaper = previous->child_subreaper;
  image.thp_disabled = previous->thp_disabled;
  image.mlock_future = previous->mlock_future;
  image.membarrier = previous->membarrier;
  image.deny_write_execute = previous->deny_write_execute;
  return image;
}

}  // namespace

std::optional<ProcessImage> capture_process(const ProcessCaptureInput& input) {
  ProcessImage image = start_from(input.previous);
  image.captured_ns = now_ns();
  if (!capture_threads(input, image)) return std::nullopt;
  const bool executes =
      std::any_of(image.threads.begin(), image.threads.end(), is_within_execution);
  if (executes && !input.killed.empty()) refuse_half_a_program(input);
  const pid_t leader = input.host_tids.front();
  image.pid = image.threads.front().tid;
  const auto cause = read_stop_cause(leader);
  auto pending = read_pending(leader, SignalQueue::kProcess);
  if (!cause || !pending) return std::nullopt;
  image.pending = std::move(*pending);
  // A SIGCONT that came after the stop was told: a stop signal would have taken it off its queue.
  const bool stopped = (cause->group_stop || input.job_stopped) && !is_continued(image);
  image.job_control = stopped           ? JobControl::kStopped
                      : input.continued ? JobControl::kContinued
                                        : JobControl::kRuns;
  KernelReader* const reader = input.kernel_reader ? KernelReader::instance() : nullptr;
  if (reader != nullptr && !reader->read_process(input.host_pid, image)) return std::nullopt;
  const bool slow = input.slow_state || input.previous == nullptr ||
                    image.change_mark != input.previous->change_mark;
  uint64_t handled = 0;
  if (slow && !read_slow_state(input.host_pid, image, handled)) return std::nullopt;
  const bool read = reader != nullptr ? read_rest(input, slow, *reader, image)
                                      : read_hidden_state(input, slow, handled, image);
  if (!read) return std::nullopt;
  return image;
}

}  // namespace replpage
