// Reads of /proc, whole and small.
#pragma once

#include <sys/types.h>

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/base/unique_fd.h"

namespace replpage {

// Whole content of a /proc file. Throws SysError; nullopt when the process is gone (ENOENT, ESRCH).
std::optional<std::string> read_proc(const std::string& path);

// Target of a /proc symbolic link, nullopt when the process or descriptor is gone. Throws SysError.
std::optional<std::string> read_link(const std::string& path);

// Numeric entries of a directory such as /proc/PID/task or /proc/PID/fd, ascending. nullopt: gone.
std::optional<std::vector<int>> numeric_entries(const std::string& path);

// Children of one thread, zombies among them. Empty when it is gone. Throws SysError.
std::vector<pid_t> children_of(pid_t pid, pid_t tid);

// Value of "Key:\tvalue" in a status-like text, without surrounding blanks; nullopt when absent.
std::optional<std::string_view> field_of(std::string_view text, std::string_view key);

// Opens with O_CLOEXEC added. Throws SysError naming the path.
UniqueFd open_path(const std::string& path, int flags, int mode = 0);

}  // namespace replpage
