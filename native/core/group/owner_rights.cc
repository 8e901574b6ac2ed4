#include "core/group/owner_rights.h"

#include <string>

#include "core/base/caller_rights.h"
#include "core/base/sys_error.h"

namespace replpage {

std::optional<Refusal> owner_refusal(const GroupOptions& options, pid_t pid) {
  if (options.uid == 0) return std::nullopt;
  try {
    if (may_trace(pid, {options.uid, options.gid, options.groups})) return std::nullopt;
  } catch (const SysError& error) {
    if (error.error() != ESRCH) throw;
    return std::nullopt;
  }
  return Refusal{
      .pid = pid,
      .object = "process " + std::to_string(pid),
      .kind = "rights",
      .why = "it runs a program that user " + std::to_string(options.uid) + " may not trace"};
}

void check_owner(const GroupOptions& options, const TraceTree& tree) {
  if (options.start_time != 0 && start_time_of(options.pid) != options.start_time) {
    throw SysError("find the process that was asked for", ESRCH, on_pid(options.pid));
  }
  Refusals refusals;
  for (const auto& [pid, process] : tree.processes()) {
    if (auto refusal = owner_refusal(options, pid)) refusals.push_back(std::move(*refusal));
  }
  if (!refusals.empty()) throw RefusedError(std::move(refusals));
}

}  // namespace replpage
