// /proc/PID/stat of a process or of one thread (proc_pid_stat(5)).
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace replpage {

class ProcStat {
 public:
  // nullopt: it is gone. Throws SysError.
  static std::optional<ProcStat> of(pid_t pid);
  static std::optional<ProcStat> of(pid_t pid, pid_t tid);

  // Throws FormatError when it is no such line.
  explicit ProcStat(std::string_view text);

  [[nodiscard]] const std::string& name() const { return name_; }
  // As in the manual: R, S, D, T, t, Z, X and others.
  [[nodiscard]] char state() const { return state_; }
  // It has ended and was not waited for, or just was.
  [[nodiscard]] bool is_dead() const { return state_ == 'Z' || state_ == 'X'; }
  // A field by its number in the manual, from 4 on; negative ones wrap. Throws FormatError when
  // there are fewer.
  [[nodiscard]] uint64_t operator[](size_t number) const;

  // Fields that more than one place needs.
  static constexpr size_t kParent = 4, kFlags = 9, kStartTime = 22, kProcessor = 39;
  // As wait(2) gives it; from the moment of a kill on. Needs the right to trace the process.
  static constexpr size_t kExitCode = 52;

 private:
  std::string name_;
  char state_ = '?';
  std::vector<uint64_t> values_;  // from field 4 on
};

// Whether nothing of it can run any more; also when it is not there at all. Throws SysError.
bool is_dead(pid_t pid, pid_t tid);

}  // namespace replpage
