#include "core/death/old_primary.h"

#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <csignal>
#include <string>
#include <vector>

#include "core/base/unique_fd.h"

namespace replpage {
namespace {

uint64_t robust_list_of(pid_t tid) {
  uint64_t head = 0;
  size_t size = 0;
  return ::syscall(SYS_get_robust_list, tid, &head, &size) == 0 ? head : 0;
}

// struct robust_list_head: next, futex_offset, list_op_pending. An empty list points to itself.
void empty_robust_list(const UniqueFd& memory, uint64_t head) {
  const uint64_t none = 0;
  const auto write_word = [&](uint64_t word, uint64_t address) {
    return ::pwrite(memory.get(), &word, sizeof word, static_cast<off_t>(address)) == sizeof word;
  };
  // Where the memory is gone already, so is the list.
  if (write_word(head, head)) write_word(none, head + 16);
}

void empty_robust_lists(const TraceTree& tree) {
  for (const auto& [pid, process] : tree.processes()) {
    const UniqueFd memory(
        ::open(("/proc/" + std::to_string(pid) + "/mem").c_str(), O_RDWR | O_CLOEXEC));
    if (!memory.valid()) continue;
    for (const auto& [tid, thread] : process.threads) {
      if (const uint64_t head = robust_list_of(tid); head != 0) empty_robust_list(memory, head);
    }
  }
}

}  // namespace

void kill_old_primary(const TraceTree& tree) {
  for (const auto& [pid, process] : tree.processes()) ::kill(pid, SIGKILL);
}

void let_old_primary_go(TraceTree& tree) {
  empty_robust_lists(tree);
  std::vector<pid_t> stopped;
  std::vector<pid_t> processes;
  for (const auto& [pid, process] : tree.processes()) {
    processes.push_back(pid);
    for (const auto& [tid, thread] : process.threads) {
      if (thread.stop == StopKind::kExit) stopped.push_back(tid);
    }
  }
  for (const pid_t pid : processes) tree.kill_process(pid);
  for (const pid_t tid : stopped) tree.release_exit(tid);
}

}  // namespace replpage
