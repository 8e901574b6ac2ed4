#include "core/image/kernel_memory.h"

#include <sys/syscall.h>
#include <unistd.h>

#include <cstddef>
#include <cstdlib>
#include <string_view>
#include <vector>

#include "core/base/page.h"
#include "core/base/sys_error.h"

namespace replpage {

namespace {

constexpr uint32_t kLengthMask = 0x3FFF;
constexpr int32_t kNoTask = -3;  // -ESRCH

struct Request {
  uint64_t address = 0;
  uint32_t pid = 0, length = 0, offset = 0;
  int32_t status = 0;
  uint64_t task = 0;
};
static_assert(sizeof(Request) == 32);
static_assert(KernelMemory::kLengthMax <= kLengthMask);

}  // namespace

// The map's one value, shared with the program.
struct KernelMemory::Area {
  uint32_t count;
  uint32_t padding[15];
  Request requests[kRequestsMax];
  uint8_t results[kResultBytes];
  uint8_t slack[kLengthMask + 1];  // what the program's masks allow beyond
};

namespace {

using namespace bpf;

constexpr int16_t kRequests = 64;
constexpr int32_t kResults = kRequests + KernelMemory::kRequestsMax * sizeof(Request);

constexpr int16_t in_request(size_t member) { return static_cast<int16_t>(kRequests + member); }

constexpr int16_t kTask = in_request(offsetof(Request, task));
constexpr int16_t kPid = in_request(offsetof(Request, pid));
constexpr int16_t kStatus = in_request(offsetof(Request, status));

// r6: the area, r7: number of the request, r8: area + 32 * number. A part that finds a task leaves
// in r3 where it lies, or 0 for a request without a pid; or it goes to the next request, which is
// kReadLength instructions behind that part.
using Program = std::vector<Instruction>;
constexpr int16_t kReadLength = 11;

// The thread is stopped, so its task stays after the release.
Program find_by_call(uint32_t find_task, uint32_t release_task) {
  return {
      load(BPF_W, 1, 8, kPid),
      set(3, 0),
      jump_if(BPF_JEQ, 1, 0, 9),
      call_kernel(find_task),
      jump_if(BPF_JNE, 0, 0, 3),
      set(0, kNoTask),
      store(BPF_W, 8, 0, kStatus),
      jump(4 + kReadLength),
      // Through memory the pointer becomes a number that arithmetic is allowed on.
      store(BPF_DW, 8, 0, kTask),
      move(1, 0),
      call_kernel(release_task),
      load(BPF_DW, 3, 8, kTask),
  };
}

// The request says where the task is; it still is that one when its number is.
Program trust_if_same(uint32_t pid_offset) {
  return {
      load(BPF_W, 1, 8, kPid),
      set(3, 0),
      jump_if(BPF_JEQ, 1, 0, 15),
      load(BPF_DW, 3, 8, kTask),
      alu(BPF_ADD, 3, static_cast<int32_t>(pid_offset)),
      move(1, 8),
      alu(BPF_ADD, 1, kStatus),
      set(2, sizeof(uint32_t)),
      call_helper(BPF_FUNC_probe_read_kernel),
      jump_if(BPF_JNE, 0, 0, 5),
      load(BPF_W, 1, 8, kStatus),
      load(BPF_W, 2, 8, kPid),
      instruction(BPF_JMP | BPF_JNE | BPF_X, 1, 2, 2, 0),
      load(BPF_DW, 3, 8, kTask),
      jump(3),
      set(0, kNoTask),
      store(BPF_W, 8, 0, kStatus),
      jump(kReadLength),
  };
}

Program make_program(int map, const Program& find) {
  const auto length = static_cast<int16_t>(find.size());
  Program program{
      instruction(BPF_LD | BPF_DW | BPF_IMM, 6, BPF_PSEUDO_MAP_VALUE, 0, map),
      instruction(0, 0, 0, 0, 0),
      set(7, 0),
      // loop (3): while r7 < min(count, kRequestsMax)
      load(BPF_W, 1, 6, 0),
      instruction(BPF_JMP | BPF_JGE | BPF_X, 7, 1, static_cast<int16_t>(17 + length), 0),
      jump_if(BPF_JGE, 7, KernelMemory::kRequestsMax, static_cast<int16_t>(16 + length)),
      move(8, 7),
      alu(BPF_LSH, 8, 5),
      add(8, 6),
  };
  program.insert(program.end(), find.begin(), find.end());
  const Program read{
      load(BPF_DW, 4, 8, in_request(offsetof(Request, address))),
      add(3, 4),
      load(BPF_W, 2, 8, in_request(offsetof(Request, length))),
      alu(BPF_AND, 2, kLengthMask),
      load(BPF_W, 4, 8, in_request(offsetof(Request, offset))),
      alu(BPF_AND, 4, KernelMemory::kResultBytes - 1),
      move(1, 6),
      alu(BPF_ADD, 1, kResults),
      add(1, 4),
      call_helper(BPF_FUNC_probe_read_kernel),
      store(BPF_W, 8, 0, kStatus),
      alu(BPF_ADD, 7, 1),
      jump(static_cast<int16_t>(-19 - length)),
      set(0, 0),
      instruction(BPF_JMP | BPF_EXIT, 0, 0, 0, 0),
  };
  program.insert(program.end(), read.begin(), read.end());
  return program;
}

bool finder_is_wanted() {
  const char* wanted = std::getenv("REPLPAGE_KERNEL_READER");
  return wanted != nullptr && std::string_view(wanted) == "iterator";
}

}  // namespace

KernelMemory::KernelMemory(const BtfTypes& types) : area_(sizeof(Area)) {
  static_assert(offsetof(Area, requests) == kRequests);
  static_assert(offsetof(Area, results) == kResults);
  if (load_with_call(types)) return;
  finder_ = std::make_unique<TaskFinder>(types);
  load(trust_if_same(types.offset("task_struct", "pid")));
}

// False where programs like ours may not ask for a task (before Linux 6.10).
bool KernelMemory::load_with_call(const BtfTypes& types) {
  const auto find_task = types.function("bpf_task_from_pid");
  const auto release_task = types.function("bpf_task_release");
  if (!find_task || !release_task || finder_is_wanted()) return false;
  try {
    load(find_by_call(*find_task, *release_task));
    return true;
  } catch (const SysError&) {
    return false;
  }
}

void KernelMemory::load(std::span<const bpf::Instruction> find) {
  const Program program = make_program(area_.map(), {find.begin(), find.end()});
  program_ = bpf::load_program(BPF_PROG_TYPE_SYSCALL, BPF_F_SLEEPABLE, program);
}

void KernelMemory::start() {
  area().count = 0;
  used_ = 0;
}

size_t KernelMemory::ask(uint64_t address, uint32_t length, uint32_t pid) {
  if (area().count >= kRequestsMax || length > kLengthMax || used_ + length > kResultBytes) {
    throw SysError("read kernel memory", E2BIG);
  }
  const uint32_t number = area().count++;
  const uint64_t task = finder_ && pid != 0 ? finder_->known(pid) : 0;
  area().requests[number] = {
      .address = address, .pid = pid, .length = length, .offset = used_, .status = 0, .task = task};
  used_ += (length + 7) & ~7u;
  return number;
}

void KernelMemory::run() {
  run_once();
  if (finder_ && find_again()) run_once();
}

// True when there is another place to look at. Tasks that are known are trusted until they turn out
// to be others.
bool KernelMemory::find_again() {
  bool found = false;
  for (Request& request : std::span(area().requests, area().count)) {
    if (request.pid == 0 || request.status != kNoTask) continue;
    const uint64_t before = request.task;
    request.task = finder_->find(request.pid);
    found |= request.task != before;
  }
  return found;
}

void KernelMemory::run_once() {
  bpf_attr attributes{};
  attributes.test.prog_fd = static_cast<uint32_t>(program_.get());
  if (::syscall(SYS_bpf, BPF_PROG_TEST_RUN, &attributes, sizeof attributes) != 0) {
    throw SysError::from_errno("run a BPF program");
  }
}

std::span<const uint8_t> KernelMemory::result(size_t request) const {
  const Request& done = area().requests[request];
  if (done.status != 0) return {};
  return {area().results + done.offset, done.length};
}

uint64_t KernelMemory::task(size_t request) const { return area().requests[request].task; }

}  // namespace replpage
