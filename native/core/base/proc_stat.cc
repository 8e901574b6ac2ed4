#include "core/base/proc_stat.h"

#include <algorithm>
#include <charconv>

#include "core/base/archive.h"
#include "core/base/procfs.h"

namespace replpage {
namespace {

constexpr size_t kFirstNumber = 4;
constexpr size_t kFields = 52;

uint64_t parse(std::string_view text) {
  const bool negative = text.starts_with('-');
  if (negative) text.remove_prefix(1);
  uint64_t value = 0;
  std::from_chars(text.data(), text.data() + text.size(), value);
  return negative ? 0 - value : value;
}

std::optional<ProcStat> read_stat(const std::string& path) {
  const auto text = read_proc(path);
  if (!text) return std::nullopt;
  return ProcStat(*text);
}

}  // namespace

std::optional<ProcStat> ProcStat::of(pid_t pid) {
  return read_stat("/proc/" + std::to_string(pid) + "/stat");
}

std::optional<ProcStat> ProcStat::of(pid_t pid, pid_t tid) {
  return read_stat("/proc/" + std::to_string(pid) + "/task/" + std::to_string(tid) + "/stat");
}

ProcStat::ProcStat(std::string_view text) {
  // The name may hold blanks and parentheses: fields count from behind the last one.
  const size_t open = text.find('(');
  const size_t close = text.rfind(')');
  if (open == std::string_view::npos || close == std::string_view::npos || close < open ||
      close + 2 >= text.size()) {
    throw FormatError("/proc/PID/stat has no name");
  }
  name_ = text.substr(open + 1, close - open - 1);
  state_ = text[close + 2];
  text.remove_prefix(std::min(close + 4, text.size()));
  values_.reserve(kFields);
  while (!text.empty()) {
    const size_t end = std::min(text.find(' '), text.size());
    values_.push_back(parse(text.substr(0, end)));
    text.remove_prefix(std::min(end + 1, text.size()));
  }
}

uint64_t ProcStat::operator[](size_t number) const {
  if (number < kFirstNumber || number - kFirstNumber >= values_.size()) {
    throw FormatError("/proc/PID/stat has too few fields");
  }
  return values_[number - kFirstNumber];
}

bool is_dead(pid_t pid, pid_t tid) {
  const auto stat = ProcStat::of(pid, tid);
  return !stat || stat->is_dead();
}

}  // namespace replpage
