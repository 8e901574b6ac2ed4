#include "core/image/task_status.h"

#include <algorithm>
#include <charconv>
#include <string>
#include <string_view>

#include "core/base/proc_stat.h"
#include "core/base/procfs.h"
#include "core/base/sys_error.h"

namespace replpage {
namespace {

constexpr std::string_view kBlanks = " \t";

template <class T>
std::vector<T> numbers(std::string_view text, int base = 10) {
  std::vector<T> values;
  while (true) {
    const size_t first = text.find_first_not_of(kBlanks);
    if (first == std::string_view::npos) return values;
    text.remove_prefix(first);
    T value{};
    const auto [end, bad] = std::from_chars(text.data(), text.data() + text.size(), value, base);
    if (bad != std::errc()) return values;
    values.push_back(value);
    text.remove_prefix(static_cast<size_t>(end - text.data()));
  }
}

// Walks the lines in the order in which the kernel writes them.
class StatusLines {
 public:
  explicit StatusLines(std::string_view text) : text_(text) {}

  [[nodiscard]] std::string_view field(std::string_view key) const {
    return field_of(text_, key).value_or(std::string_view());
  }
  template <class T>
  [[nodiscard]] T number(std::string_view key, int base = 10) const {
    const auto values = numbers<T>(field(key), base);
    return values.empty() ? T{} : values.front();
  }
  [[nodiscard]] int32_t last(std::string_view key) const {
    const auto values = numbers<int32_t>(field(key));
    return values.empty() ? 0 : values.back();
  }
  [[nodiscard]] std::array<uint32_t, 4> four(std::string_view key) const {
    const auto values = numbers<uint32_t>(field(key));
    std::array<uint32_t, 4> ids{};
    for (size_t i = 0; i < ids.size() && i < values.size(); ++i) ids[i] = values[i];
    return ids;
  }

 private:
  std::string_view text_;
};

Credentials parse_credentials(const StatusLines& lines) {
  Credentials credentials;
  credentials.uids = lines.four("Uid");
  credentials.gids = lines.four("Gid");
  credentials.groups = numbers<uint32_t>(lines.field("Groups"));
  credentials.cap_inheritable = lines.number<uint64_t>("CapInh", 16);
  credentials.cap_permitted = lines.number<uint64_t>("CapPrm", 16);
  credentials.cap_effective = lines.number<uint64_t>("CapEff", 16);
  credentials.cap_bounding = lines.number<uint64_t>("CapBnd", 16);
  credentials.cap_ambient = lines.number<uint64_t>("CapAmb", 16);
  credentials.no_new_privs = lines.number<int>("NoNewPrivs") != 0;
  return credentials;
}

std::string task_path(pid_t task, const char* file) {
  return "/proc/" + std::to_string(task) + file;
}

}  // namespace

std::optional<TaskStatus> read_task_status(pid_t task) {
  const auto text = read_proc(task_path(task, "/status"));
  if (!text) return std::nullopt;
  const StatusLines lines(*text);
  TaskStatus status;
  status.thread_ids = numbers<int32_t>(lines.field("NSpid"));
  if (status.thread_ids.empty()) status.thread_ids = {static_cast<int32_t>(task)};
  status.process_group = lines.last("NSpgid");
  status.session = lines.last("NSsid");
  status.tracer = lines.number<int32_t>("TracerPid");
  status.seccomp_mode = lines.number<int32_t>("Seccomp");
  status.file_mode_mask = lines.number<uint32_t>("Umask", 8);
  status.has_memory = !lines.field("VmSize").empty();
  // "Kthread" is there since 6.10; PF_KTHREAD in stat tells it always.
  status.kernel_thread = lines.number<int>("Kthread") != 0;
  status.thp_disabled = lines.field("THP_enabled") == "0";
  status.shadow_stack = lines.field("x86_Thread_features").find("shstk") != std::string_view::npos;
  const std::string_view state = lines.field("State");
  status.state = state.empty() ? '?' : state.front();
  status.ignored_signals = lines.number<uint64_t>("SigIgn", 16);
  status.caught_signals = lines.number<uint64_t>("SigCgt", 16);
  status.credentials = parse_credentials(lines);
  return status;
}

std::optional<TaskStat> read_task_stat(pid_t pid) {
  const auto read = ProcStat::of(pid);
  if (!read) return std::nullopt;
  const ProcStat& fields = *read;
  TaskStat stat;
  stat.flags = fields[ProcStat::kFlags];
  stat.exit_signal = static_cast<int32_t>(fields[38]);
  MemoryLayout& layout = stat.layout;
  layout.start_code = fields[26];
  layout.end_code = fields[27];
  layout.start_stack = fields[28];
  layout.start_data = fields[45];
  layout.end_data = fields[46];
  layout.start_brk = fields[47];
  layout.arg_start = fields[48];
  layout.arg_end = fields[49];
  layout.env_start = fields[50];
  layout.env_end = fields[51];
  return stat;
}

}  // namespace replpage
