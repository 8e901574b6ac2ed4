#include "core/memory/memory_thread.h"

#include "core/base/procfs.h"

namespace replpage {
namespace {

// statm is all zero for a task without an address space.
bool has_memory(pid_t pid, pid_t tid) {
  const auto pages = read_proc(thread_file(pid, tid, "statm"));
  return pages && !pages->empty() && !pages->starts_with("0 ");
}

}  // namespace

std::string thread_file(pid_t pid, pid_t tid, const char* name) {
  return "/proc/" + std::to_string(pid) + "/task/" + std::to_string(tid) + "/" + name;
}

std::optional<pid_t> memory_thread(pid_t pid) {
  if (has_memory(pid, pid)) return pid;
  const auto threads = numeric_entries("/proc/" + std::to_string(pid) + "/task");
  if (!threads) return std::nullopt;
  for (const int tid : *threads) {
    if (tid != pid && has_memory(pid, tid)) return tid;
  }
  return std::nullopt;
}

}  // namespace replpage
