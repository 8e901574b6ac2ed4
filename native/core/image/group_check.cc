#include "core/image/group_check.h"

#include <set>
#include <string>
#include <string_view>

#include "core/base/page.h"

namespace replpage {
namespace {

constexpr uint64_t kAddressEnd = (uint64_t{1} << 56) - kPageSize;  // with 5-level page tables
constexpr size_t kSignals = 64;
constexpr size_t kLimits = 16;
constexpr size_t kNameBytesMax = 15;                                // TASK_COMM_LEN - 1
constexpr size_t kXstateBytesMin = 576, kXstateBytesMax = 1 << 16;  // FXSAVE area and header
constexpr size_t kAuxvWordsMax = 128;
constexpr size_t kGroupsMax = 65536;  // NGROUPS_MAX
constexpr size_t kAffinityBytesMax = 1024;
constexpr uint32_t kProtectionMax = 7;
constexpr uint32_t kModeMaskMax = 0777;
constexpr int32_t kScoreMax = 1000;  // oom_score_adj

// Checks of one process or one open file, which messages name.
class Check {
 public:
  explicit Check(std::string subject) : subject_(std::move(subject)) {}
  void that(bool holds, const char* what) const {
    if (!holds) throw FormatError("image of " + subject_ + ": " + what);
  }
  void text(const std::string& value, const char* what) const {
    that(value.find('\0') == std::string::npos, what);
  }

 private:
  std::string subject_;
};

template <class T>
bool between(T value, T first, T last) {
  return value >= first && value <= last;
}

void check_pending(const std::vector<SignalInfo>& pending, const Check& check) {
  for (const SignalInfo& info : pending) {
    check.that(between(signal_of(info), 1, static_cast<int32_t>(kSignals)),
               "a pending signal has no such number");
  }
}

void check_thread(const ThreadImage& thread, const Check& check) {
  check.that(thread.tid > 0, "a thread id is not positive");
  check.that(between(thread.xstate.size(), kXstateBytesMin, kXstateBytesMax),
             "extended registers have an impossible size");
  check.that(thread.name.size() <= kNameBytesMax, "a thread's name is too long");
  check.text(thread.name, "a thread's name holds a zero");
  check.that(thread.scheduling.affinity.size() <= kAffinityBytesMax, "a CPU mask is too long");
  check.that(thread.credentials.groups.size() <= kGroupsMax, "too many supplementary groups");
  check.that(between(thread.parent_death_signal, 0, static_cast<int32_t>(kSignals)),
             "the parent-death signal has no such number");
  check_pending(thread.pending, check);
}

bool is_kernel_mapping(MappingKind kind) { return kind == MappingKind::kVsyscall; }

void check_mappings(const std::vector<MappingImage>& mappings, const Check& check) {
  uint64_t end = 0;
  for (const MappingImage& mapping : mappings) {
    check.that(between(mapping.kind, MappingKind::kAnonymous, MappingKind::kVsyscall),
               "a mapping has an unknown kind");
    check.that(mapping.start < mapping.end && mapping.start >= end,
               "mappings are empty or out of order");
    check.that(page_floor(mapping.start) == mapping.start && page_floor(mapping.end) == mapping.end,
               "a mapping is not page aligned");
    check.that(is_kernel_mapping(mapping.kind) || mapping.end <= kAddressEnd,
               "a mapping lies outside of user memory");
    check.that(mapping.prot <= kProtectionMax, "a mapping has an unknown protection");
    check.text(mapping.path, "a mapping's path holds a zero");
    check.text(mapping.anon_name, "a mapping's name holds a zero");
    end = mapping.end;
  }
}

void check_timers(const std::vector<PosixTimer>& timers, const Check& check) {
  int64_t last = -1;
  for (const PosixTimer& timer : timers) {
    check.that(timer.id > last, "timers are out of order");
    check.that(between(timer.signal, 0, static_cast<int32_t>(kSignals)),
               "a timer's signal has no such number");
    last = timer.id;
  }
}

void check_process(const ProcessImage& process, const Check& check) {
  check.that(process.pid > 0, "the pid is not positive");
  check.that(!process.threads.empty() && process.threads.front().tid == process.pid,
             "the main thread is not first");
  std::set<int32_t> tids;
  for (const ThreadImage& thread : process.threads) {
    check_thread(thread, check);
    check.that(tids.insert(thread.tid).second, "a thread id comes twice");
  }
  check_mappings(process.mappings, check);
  check_pending(process.pending, check);
  check_timers(process.posix_timers, check);
  check.that(process.actions.size() == kSignals, "signal actions are incomplete");
  check.that(process.limits.size() == kLimits, "resource limits are incomplete");
  check.that(process.layout.auxv.size() <= kAuxvWordsMax, "the auxiliary vector is too long");
  check.that(process.file_mode_mask <= kModeMaskMax, "the umask has unknown bits");
  check.that(between(process.job_control, JobControl::kRuns, JobControl::kContinued),
             "its job control is unknown");
  check.that(between(process.oom_score_adj, -kScoreMax, kScoreMax), "oom_score_adj is too large");
  check.that(between(process.exit_signal, 0, static_cast<int32_t>(kSignals)),
             "the exit signal has no such number");
  check.text(process.executable, "the executable's path holds a zero");
  check.text(process.working_directory, "the working directory's path holds a zero");
  check.text(process.root_directory, "the root directory's path holds a zero");
}

void check_processes(const GroupImage& image) {
  Check("the group").that(!image.processes.empty(), "it has no process");
  std::set<int32_t> pids;
  for (const ProcessImage& process : image.processes) {
    const Check check("process " + std::to_string(process.pid));
    check_process(process, check);
    // The root's parent is outside, and so is an orphan's.
    check.that(process.parent == 0 || pids.contains(process.parent),
               "its parent does not come before it");
    check.that(pids.insert(process.pid).second, "its pid comes twice");
    check.that(process.file_table < image.file_tables.size(), "it has no descriptor table");
  }
  for (const ZombieImage& zombie : image.zombies) {
    const Check check("ended process " + std::to_string(zombie.pid));
    check.that(zombie.pid > 0 && !pids.contains(zombie.pid), "its pid is impossible");
    check.text(zombie.name, "its name holds a zero");
  }
}

void check_open_file(const OpenFileImage& file, size_t open_files, const Check& check) {
  check.that(between(file.kind, OpenFileKind::kRegular, OpenFileKind::kNetlinkSocket),
             "it has an unknown kind");
  check.text(file.path, "its path holds a zero");
  for (const EpollWatch& watch : file.watches) {
    check.that(watch.target < open_files || watch.target == kNoOpenFile,
               "it watches an unknown file");
  }
  for (const InotifyWatch& watch : file.notify_watches) {
    check.text(watch.path, "a watched path holds a zero");
  }
  for (const FileLock& lock : file.locks) {
    check.that(between(lock.kind, FileLock::Kind::kFlock, FileLock::Kind::kOpenFile),
               "a lock has an unknown kind");
  }
}

void check_descriptors(const GroupImage& image) {
  for (size_t i = 0; i < image.open_files.size(); ++i) {
    check_open_file(image.open_files[i], image.open_files.size(),
                    Check("open file " + std::to_string(i)));
  }
  for (size_t i = 0; i < image.file_tables.size(); ++i) {
    const Check check("descriptor table " + std::to_string(i));
    std::set<int32_t> numbers;
    for (const DescriptorImage& descriptor : image.file_tables[i].descriptors) {
      check.that(descriptor.fd >= 0 && numbers.insert(descriptor.fd).second,
                 "a descriptor's number is negative or comes twice");
      check.that(descriptor.open_file < image.open_files.size(),
                 "a descriptor leads to an unknown file");
    }
  }
}

void check_shared_objects(const GroupImage& image) {
  std::set<uint32_t> ids;
  for (const SharedObjectImage& object : image.shared_objects) {
    const Check check("shared object " + std::to_string(object.id));
    check.that(ids.insert(object.id).second, "its id comes twice");
    check.text(object.name, "its name holds a zero");
  }
}

}  // namespace

void check_group_image(const GroupImage& image) {
  check_processes(image);
  check_descriptors(image);
  check_shared_objects(image);
}

}  // namespace replpage
