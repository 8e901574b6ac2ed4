#include "core/image/task_finder.h"

#include <unistd.h>

#include <cerrno>
#include <vector>

#include "core/base/sys_error.h"

namespace replpage {
namespace {

using namespace bpf;

// Threads of many groups; they are found again when they are forgotten.
constexpr size_t kKnownMax = 16384;

// Of struct bpf_iter__task: the task, or null after the last one.
constexpr int16_t kTaskOfContext = sizeof(uint64_t);

std::vector<Instruction> make_program(int map) {
  return {
      instruction(BPF_LD | BPF_DW | BPF_IMM, 6, BPF_PSEUDO_MAP_VALUE, 0, map),
      instruction(0, 0, 0, 0, 0),
      load(BPF_DW, 2, 1, kTaskOfContext),
      jump_if(BPF_JEQ, 2, 0, 1),
      store(BPF_DW, 6, 2, 0),
      set(0, 0),
      instruction(BPF_JMP | BPF_EXIT, 0, 0, 0, 0),
  };
}

}  // namespace

TaskFinder::TaskFinder(const BtfTypes& types) : found_(sizeof(uint64_t)) {
  const auto iterator = types.function("bpf_iter_task");
  if (!iterator) throw SysError("find bpf_iter_task", ENOSYS);
  program_ = bpf::load_iterator(*iterator, make_program(found_.map()));
}

uint64_t TaskFinder::known(uint32_t tid) const {
  const auto at = known_.find(tid);
  return at == known_.end() ? 0 : at->second;
}

uint64_t TaskFinder::find(uint32_t tid) {
  auto* const found = static_cast<volatile uint64_t*>(found_.data());
  *found = 0;
  const UniqueFd iteration = bpf::iterate_task(program_, tid);
  if (iteration.valid()) {
    char none = 0;
    if (::read(iteration.get(), &none, sizeof none) < 0) {
      throw SysError::from_errno("read a BPF iterator", on_pid(static_cast<pid_t>(tid)));
    }
  }
  known_.erase(tid);
  if (known_.size() >= kKnownMax) known_.clear();
  if (*found != 0) known_.emplace(tid, *found);
  return *found;
}

}  // namespace replpage
