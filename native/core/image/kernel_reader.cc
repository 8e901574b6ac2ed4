#include "core/image/kernel_reader.h"

#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <string_view>

#include "core/base/clock.h"
#include "core/base/clock_offsets.h"
#include "core/base/sys_error.h"
#include "core/image/kernel_offsets.h"

namespace replpage {
namespace {

constexpr size_t kSignals = 64;
constexpr size_t kNameBytes = 16;
constexpr size_t kPosixTimersMax = 4096;
constexpr uint32_t kVectorBytes = 40 * sizeof(uint64_t);  // the auxiliary vector's part in use
constexpr uint32_t kActionsBytes = kSignals * sizeof(SignalAction);
constexpr int32_t kStackAutoDisarm = INT32_MIN;  // SS_AUTODISARM, bit 31

// Values inside the kernel that have kept their meaning since they appeared.
constexpr uint8_t kTimerEnqueued = 1;                        // HRTIMER_STATE_ENQUEUED
constexpr uint64_t kLocked = 0x2000;                         // VM_LOCKED
constexpr uint64_t kLockedOnFault = 0x80000;                 // VM_LOCKONFAULT
constexpr uint64_t kDumpableMask = 3;                        // MMF_DUMPABLE_MASK
constexpr int kCpuClockProfiling = 0, kCpuClockVirtual = 1;  // of signal_struct.it

template <class T>
T value_at(std::span<const uint8_t> bytes, uint32_t offset) {
  T value{};
  if (offset + sizeof value > bytes.size()) throw SysError("read a kernel structure", ERANGE);
  std::memcpy(&value, bytes.data() + offset, sizeof value);
  return value;
}

// The machine's own, whatever time namespace we live in.
uint64_t machine_clock_ns(clockid_t clock) {
  static const ClockOffsets ahead = clock_offsets_of(::getpid());
  return clock_ns(clock) - static_cast<uint64_t>(ahead.of(clock));
}

// CPU time of a process as a clock: MAKE_PROCESS_CPUCLOCK of include/linux/posix-timers.h.
clockid_t process_clock(pid_t pid) {
  constexpr clockid_t kSchedulerTime = 2;
  return static_cast<clockid_t>(~static_cast<unsigned>(pid) << 3) | kSchedulerTime;
}

// Time until `expires`; at least 1, since 0 means "not armed" to those that set timers. One that
// waits for its signal to be delivered goes on at its next period.
uint64_t time_left(uint64_t expires, uint64_t now, uint64_t interval) {
  if (expires > now) return expires - now;
  return interval == 0 ? 1 : interval - (now - expires) % interval;
}

// Folds values into one number that differs when one of them does (FNV-1a).
class Mark {
 public:
  void add(std::span<const uint8_t> bytes, uint32_t offset, uint32_t length) {
    for (const uint8_t byte : bytes.subspan(offset, length)) {
      value_ = (value_ ^ byte) * 0x100000001B3u;
    }
  }
  [[nodiscard]] uint64_t value() const { return value_ | 1; }  // 0 means "not known"

 private:
  uint64_t value_ = 0xCBF29CE484222325u;
};

uint64_t mark_thread(std::span<const uint8_t> task, const KernelOffsets& at) {
  Mark mark;
  for (const uint32_t offset :
       {at.task.credentials, at.task.flags, at.task.timer_slack, at.task.cpus}) {
    mark.add(task, offset, sizeof(uint64_t));
  }
  for (const uint32_t offset : {at.task.nice, at.task.policy, at.task.priority}) {
    mark.add(task, offset, sizeof(uint32_t));
  }
  return mark.value();
}

void read_layout(std::span<const uint8_t> bytes, const KernelOffsets& at, MemoryLayout& layout) {
  const auto word = [&bytes](uint32_t offset) { return value_at<uint64_t>(bytes, offset); };
  layout.start_code = word(at.memory.start_code);
  layout.end_code = word(at.memory.end_code);
  layout.start_data = word(at.memory.start_data);
  layout.end_data = word(at.memory.end_data);
  layout.start_brk = word(at.memory.start_brk);
  layout.brk = word(at.memory.brk);
  layout.start_stack = word(at.memory.start_stack);
  layout.arg_start = word(at.memory.arg_start);
  layout.arg_end = word(at.memory.arg_end);
  layout.env_start = word(at.memory.env_start);
  layout.env_end = word(at.memory.env_end);
}

// The state's bits come in pairs (ready, asked for); each has a registering command of
// membarrier(2).
uint32_t registrations(uint32_t state) {
  struct {
    uint32_t ready, command;
  } constexpr kRegistrations[] = {
      {1 << 0, 1 << 4}, {1 << 2, 1 << 2}, {1 << 4, 1 << 6}, {1 << 6, 1 << 8}};
  uint32_t commands = 0;
  for (const auto& [ready, command] : kRegistrations) {
    if ((state & ready) != 0) commands |= command;
  }
  return commands;
}

void read_memory(std::span<const uint8_t> bytes, const KernelOffsets& at, ProcessImage& image) {
  read_layout(bytes, at, image.layout);
  const auto flags = value_at<uint64_t>(bytes, at.memory.default_flags);
  image.mlock_future = (flags & kLocked) == 0 ? 0u
                       : (flags & kLockedOnFault) == 0
                           ? static_cast<uint32_t>(MCL_FUTURE)
                           : static_cast<uint32_t>(MCL_FUTURE | MCL_ONFAULT);
  image.membarrier = registrations(value_at<uint32_t>(bytes, at.memory.membarrier));
  image.dumpable = static_cast<int32_t>(value_at<uint64_t>(bytes, at.memory.flags) & kDumpableMask);
}

IntervalTimer cpu_timer(std::span<const uint8_t> bytes, uint32_t offset, uint64_t now) {
  const auto expires = value_at<uint64_t>(bytes, offset);
  const auto interval = value_at<uint64_t>(bytes, offset + sizeof expires);
  if (expires == 0) return {};
  return {.value_us = time_left(expires, now, interval) / 1000 + 1, .interval_us = interval / 1000};
}

void read_interval_timers(std::span<const uint8_t> bytes, const KernelOffsets& at,
                          ProcessImage& image) {
  const auto interval = value_at<uint64_t>(bytes, at.signals.real_interval);
  const bool armed = (value_at<uint8_t>(bytes, at.signals.real_state) & kTimerEnqueued) != 0;
  const auto expires = value_at<uint64_t>(bytes, at.signals.real_expires);
  // An expired periodic timer is armed again when its SIGALRM is delivered.
  const bool waits = !armed && interval != 0 && expires != 0;
  const uint64_t left =
      armed || waits ? time_left(expires, machine_clock_ns(CLOCK_MONOTONIC), interval) / 1000 + 1
                     : 0;
  image.interval_timers[ITIMER_REAL] = {.value_us = left,
                                        .interval_us = left == 0 ? 0 : interval / 1000};
  const auto user = value_at<uint64_t>(bytes, at.signals.user_time);
  const auto system = value_at<uint64_t>(bytes, at.signals.system_time);
  constexpr uint32_t kTimerBytes = 2 * sizeof(uint64_t);
  image.interval_timers[ITIMER_VIRTUAL] =
      cpu_timer(bytes, at.signals.cpu_timers + kCpuClockVirtual * kTimerBytes, user);
  image.interval_timers[ITIMER_PROF] =
      cpu_timer(bytes, at.signals.cpu_timers + kCpuClockProfiling * kTimerBytes, user + system);
}

void read_signals(std::span<const uint8_t> bytes, const KernelOffsets& at, ProcessImage& image) {
  const auto subreaper = value_at<uint8_t>(bytes, at.signals.subreaper.offset);
  image.child_subreaper = (subreaper >> at.signals.subreaper.bit & 1) != 0;
  image.oom_score_adj = value_at<int16_t>(bytes, at.signals.oom_score_adj);
  image.limits.resize(RLIM_NLIMITS);
  for (uint32_t i = 0; i < image.limits.size(); ++i) {
    const uint32_t offset = at.signals.limits + i * 2 * sizeof(uint64_t);
    image.limits[i] = {.soft = value_at<uint64_t>(bytes, offset),
                       .hard = value_at<uint64_t>(bytes, offset + sizeof(uint64_t))};
  }
  read_interval_timers(bytes, at, image);
}

std::unique_ptr<const DroppedSignals> watch_dropped_signals(const BtfTypes& types) {
  try {
    return std::make_unique<const DroppedSignals>(types);
  } catch (const SysError&) {  // no tracepoints here: a signal in flight is lost with a SIGKILL
    return nullptr;
  } catch (const FormatError&) {
    return nullptr;
  }
}

}  // namespace

struct KernelReader::Made {
  std::unique_ptr<KernelReader> reader;
  std::unique_ptr<const DroppedSignals> dropped;
  std::string why_not;
};

const KernelReader::Made& KernelReader::made() {
  static const Made made = [] {
    Made result;
    try {
      const BtfTypes types = BtfTypes::load();
      result.dropped = watch_dropped_signals(types);
      const char* wanted = std::getenv("REPLPAGE_KERNEL_READER");
      if (wanted != nullptr && std::string_view(wanted) == "off") {
        throw FormatError("REPLPAGE_KERNEL_READER=off");
      }
      std::unique_ptr<KernelReader> reader(new KernelReader(types));
      if (!reader->finds_own_task()) throw FormatError("it does not find our own process");
      reader->find_mappings(types);
      result.reader = std::move(reader);
    } catch (const std::exception& error) {  // what it reads is asked for by injection
      result.why_not = error.what();
    }
    return result;
  }();
  return made;
}

const std::string& KernelReader::why_not() { return made().why_not; }

KernelReader* KernelReader::instance() { return made().reader.get(); }

const DroppedSignals* KernelReader::dropped_signals() { return made().dropped.get(); }

KernelReader::KernelReader(const BtfTypes& types)
    : at_(std::make_unique<const KernelOffsets>(types)), memory_(types) {}

KernelReader::~KernelReader() = default;

// In a PID namespace of our own our pids name other tasks to the kernel.
bool KernelReader::finds_own_task() {
  char name[kNameBytes] = {};
  if (::prctl(PR_GET_NAME, name) != 0) return false;
  ThreadImage self;
  ProcessImage process;
  const auto tid = static_cast<pid_t>(::syscall(SYS_gettid));
  if (!read_thread(tid, self) || !read_process(::getpid(), process)) return false;
  stack_t stack{};
  uint64_t tid_address = 0;
  ::sigaltstack(nullptr, &stack);
  ::prctl(PR_GET_TID_ADDRESS, &tid_address);
  return self.name == name && self.clear_child_tid == tid_address &&
         self.altstack.sp == reinterpret_cast<uint64_t>(stack.ss_sp) &&
         process.dumpable == ::prctl(PR_GET_DUMPABLE) && process.actions.size() == kSignals;
}

void KernelReader::find_mappings(const BtfTypes& types) {
  const std::lock_guard lock(mutex_);
  try {
    auto mappings = std::make_unique<const KernelMappings>(types);
    const auto pointers = read_pointers(::getpid());
    if (pointers && mappings->understands_own(memory_, pointers->memory)) {
      mappings_ = std::move(mappings);
    }
  } catch (const SysError&) {  // another kernel's mappings
  }
}

std::optional<std::vector<VmBits>> KernelReader::read_mappings(pid_t host_pid) {
  const std::lock_guard lock(mutex_);
  const auto pointers = mappings_ ? read_pointers(host_pid) : std::nullopt;
  if (!pointers) return std::nullopt;
  return mappings_->read(memory_, pointers->memory);
}

bool KernelReader::read_thread(pid_t host_tid, ThreadImage& image) {
  const std::lock_guard lock(mutex_);
  memory_.start();
  const size_t request = memory_.ask(0, at_->task.bytes, static_cast<uint32_t>(host_tid));
  memory_.run();
  const auto task = memory_.result(request);
  if (task.empty()) return false;
  const auto size = value_at<uint64_t>(task, at_->task.stack_size);
  const auto flags = value_at<int32_t>(task, at_->task.stack_flags) & kStackAutoDisarm;
  image.altstack = {.sp = value_at<uint64_t>(task, at_->task.stack_pointer),
                    .size = size,
                    .flags = flags | (size == 0 ? SS_DISABLE : 0)};
  image.change_mark = mark_thread(task, *at_);
  image.clear_child_tid = value_at<uint64_t>(task, at_->task.tid_address);
  image.parent_death_signal = value_at<int32_t>(task, at_->task.death_signal);
  const auto name = value_at<std::array<char, kNameBytes>>(task, at_->task.name);
  image.name.assign(name.data(), ::strnlen(name.data(), kNameBytes - 1));
  const auto credentials = value_at<uint64_t>(task, at_->task.credentials);
  memory_.start();
  const size_t bits = memory_.ask(credentials + at_->securebits, sizeof(uint32_t));
  memory_.run();
  const auto securebits = memory_.result(bits);
  if (securebits.empty()) return false;
  image.credentials.securebits = value_at<uint32_t>(securebits, 0);
  return true;
}

std::optional<KernelReader::Pointers> KernelReader::read_pointers(pid_t host_pid) {
  memory_.start();
  const size_t request = memory_.ask(0, at_->task.bytes, static_cast<uint32_t>(host_pid));
  memory_.run();
  const auto task = memory_.result(request);
  if (task.empty()) return std::nullopt;
  const Pointers pointers{.memory = value_at<uint64_t>(task, at_->task.memory),
                          .directories = value_at<uint64_t>(task, at_->task.directories),
                          .signals = value_at<uint64_t>(task, at_->task.signals),
                          .actions = value_at<uint64_t>(task, at_->task.actions),
                          .personality = value_at<uint32_t>(task, at_->task.personality)};
  const bool whole = pointers.memory != 0 && pointers.directories != 0 && pointers.actions != 0;
  if (!whole) return std::nullopt;  // past its exit stop
  return pointers;
}

bool KernelReader::read_process(pid_t host_pid, ProcessImage& image) {
  const std::lock_guard lock(mutex_);
  const auto pointers = read_pointers(host_pid);
  if (!pointers) return false;
  memory_.start();
  const size_t memory = memory_.ask(pointers->memory, at_->memory.bytes);
  const size_t signals = memory_.ask(pointers->signals, at_->signals.bytes);
  const size_t actions = memory_.ask(pointers->actions + at_->actions, kActionsBytes);
  const size_t directories = memory_.ask(pointers->directories, at_->directories.bytes);
  memory_.run();
  for (const size_t request : {memory, signals, actions, directories}) {
    if (memory_.result(request).empty()) return false;
  }
  read_memory(memory_.result(memory), *at_, image);
  read_signals(memory_.result(signals), *at_, image);
  image.actions.resize(kSignals);
  std::memcpy(image.actions.data(), memory_.result(actions).data(), kActionsBytes);
  const auto places = memory_.result(directories);
  image.file_mode_mask = value_at<uint32_t>(places, at_->directories.mode_mask);
  Mark mark;
  constexpr uint32_t kPathBytes = 16, kGroupsBytes = 32;
  mark.add(places, at_->directories.root, kPathBytes);
  mark.add(places, at_->directories.working, kPathBytes);
  mark.add(memory_.result(signals), at_->signals.groups, kGroupsBytes);
  mark.add(memory_.result(memory), at_->memory.executable, sizeof(uint64_t));
  mark.add(memory_.result(memory), at_->memory.flags, sizeof(uint64_t));
  mark.add(memory_.result(memory), at_->memory.vector, kVectorBytes);
  image.change_mark = mark.value() ^ (uint64_t{pointers->personality} << 1);
  return true;
}

std::optional<uint64_t> KernelReader::read_pointer(uint64_t address) {
  memory_.start();
  const size_t request = memory_.ask(address, sizeof(uint64_t));
  memory_.run();
  const auto bytes = memory_.result(request);
  if (bytes.empty()) return std::nullopt;
  return value_at<uint64_t>(bytes, 0);
}

bool KernelReader::has_semaphore_undos(pid_t host_pid) {
  const std::lock_guard lock(mutex_);
  memory_.start();
  const size_t request =
      memory_.ask(at_->semaphore_undos, sizeof(uint64_t), static_cast<uint32_t>(host_pid));
  memory_.run();
  const auto bytes = memory_.result(request);
  const uint64_t list = bytes.empty() ? 0 : value_at<uint64_t>(bytes, 0);
  if (list == 0) return false;
  const uint64_t head = list + at_->undo_list;
  return read_pointer(head).value_or(head) != head;  // an empty list leads to itself
}

namespace {

bool is_armed(std::span<const uint8_t> bytes, const PosixTimer& timer, const KernelOffsets& at) {
  const bool status = value_at<int32_t>(bytes, at.timer.status) != 0;
  if (!at.timer.status_is_flag) return status;
  if (timer.clock == CLOCK_PROCESS_CPUTIME_ID) {
    return value_at<uint64_t>(bytes, at.timer.cpu_expires) != 0;
  }
  return status || timer.interval_ns != 0;
}

}  // namespace

std::optional<PosixTimer> KernelReader::read_posix_timer(pid_t host_pid, uint64_t address) {
  memory_.start();
  const size_t request = memory_.ask(address, at_->timer.bytes);
  memory_.run();
  const auto read = memory_.result(request);
  if (read.empty()) return std::nullopt;
  const std::vector<uint8_t> bytes(read.begin(), read.end());
  PosixTimer timer;
  timer.id = value_at<int32_t>(bytes, at_->timer.id);
  timer.clock = value_at<int32_t>(bytes, at_->timer.clock);
  timer.interval_ns = value_at<uint64_t>(bytes, at_->timer.interval);
  const bool silent = value_at<int32_t>(bytes, at_->timer.notify) == SIGEV_NONE;
  const bool armed = is_armed(bytes, timer, *at_);
  // One without a signal never runs: its time is counted when somebody asks.
  if (!armed && !silent) return timer;
  const auto expires = value_at<uint64_t>(bytes, at_->timer.expires);
  if (timer.clock == CLOCK_PROCESS_CPUTIME_ID) {
    timer.value_ns = time_left(value_at<uint64_t>(bytes, at_->timer.cpu_expires),
                               clock_ns(process_clock(host_pid)), timer.interval_ns);
    return timer;
  }
  // The timer may run on another clock than it was made for (relative times of CLOCK_REALTIME).
  const auto base = value_at<uint64_t>(bytes, at_->timer.base);
  const auto clock = read_pointer(base + at_->base_clock);
  if (!clock) return std::nullopt;
  const uint64_t now = machine_clock_ns(static_cast<clockid_t>(*clock & 0xFFFFFFFF));
  const bool over = silent && timer.interval_ns == 0 && expires <= now;
  timer.value_ns = over ? 0 : time_left(expires, now, timer.interval_ns);
  return timer;
}

std::optional<std::vector<PosixTimer>> KernelReader::read_posix_timers(pid_t host_pid) {
  const std::lock_guard lock(mutex_);
  const auto pointers = read_pointers(host_pid);
  if (!pointers) return std::nullopt;
  const uint64_t head = pointers->signals + at_->signals.posix_timers;
  const uint64_t end = at_->signals.timers_ring ? head : 0;
  auto next = read_pointer(head);
  std::vector<PosixTimer> timers;
  while (next && *next != end && timers.size() < kPosixTimersMax) {
    const auto timer = read_posix_timer(host_pid, *next - at_->timer.next);
    if (!timer) return std::nullopt;
    timers.push_back(*timer);
    next = read_pointer(*next);
  }
  if (!next) return std::nullopt;
  std::sort(timers.begin(), timers.end(),
            [](const PosixTimer& a, const PosixTimer& b) { return a.id < b.id; });
  return timers;
}

}  // namespace replpage
