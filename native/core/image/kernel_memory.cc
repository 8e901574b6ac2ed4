#include "core/image/kernel_memory.h"

#include <linux/bpf.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include <array>
#include <cstddef>

#include "core/base/page.h"
#include "core/base/sys_error.h"

namespace replpage {

namespace {

constexpr uint32_t kResultBytes = 1 << 18;  // a power of two: the program masks offsets
constexpr uint32_t kLengthMask = 0xFFF;
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
  uint8_t slack[2 * kPageSize];  // what the program's masks allow beyond
};

namespace {

constexpr int16_t kRequests = 64;
constexpr int32_t kResults = kRequests + KernelMemory::kRequestsMax * sizeof(Request);

long bpf(int command, bpf_attr& attributes) {
  return ::syscall(SYS_bpf, command, &attributes, sizeof attributes);
}

// The eBPF instructions that the program needs (Documentation/bpf/standardization).
using Instruction = bpf_insn;
constexpr Instruction instruction(uint8_t code, uint8_t to, uint8_t from, int16_t offset,
                                  int32_t value) {
  return {.code = code, .dst_reg = to, .src_reg = from, .off = offset, .imm = value};
}
constexpr Instruction move(uint8_t to, uint8_t from) {
  return instruction(BPF_ALU64 | BPF_MOV | BPF_X, to, from, 0, 0);
}
constexpr Instruction set(uint8_t to, int32_t value) {
  return instruction(BPF_ALU64 | BPF_MOV | BPF_K, to, 0, 0, value);
}
constexpr Instruction add(uint8_t to, uint8_t from) {
  return instruction(BPF_ALU64 | BPF_ADD | BPF_X, to, from, 0, 0);
}
constexpr Instruction alu(uint8_t operation, uint8_t to, int32_t value) {
  return instruction(BPF_ALU64 | operation | BPF_K, to, 0, 0, value);
}
constexpr Instruction load(uint8_t size, uint8_t to, uint8_t from, int16_t offset) {
  return instruction(BPF_LDX | size | BPF_MEM, to, from, offset, 0);
}
constexpr Instruction store(uint8_t size, uint8_t to, uint8_t from, int16_t offset) {
  return instruction(BPF_STX | size | BPF_MEM, to, from, offset, 0);
}
constexpr Instruction jump_if(uint8_t comparison, uint8_t left, int32_t value, int16_t distance) {
  return instruction(BPF_JMP | comparison | BPF_K, left, 0, distance, value);
}
constexpr Instruction jump(int16_t distance) {
  return instruction(BPF_JMP | BPF_JA, 0, 0, distance, 0);
}
constexpr Instruction call_helper(int32_t id) {
  return instruction(BPF_JMP | BPF_CALL, 0, 0, 0, id);
}
constexpr Instruction call_kernel(uint32_t type) {
  return instruction(BPF_JMP | BPF_CALL, 0, BPF_PSEUDO_KFUNC_CALL, 0, static_cast<int32_t>(type));
}

constexpr int16_t in_request(size_t member) { return static_cast<int16_t>(kRequests + member); }

// r6: the area, r7: number of the request, r8: area + 32 * number.
std::vector<Instruction> make_program(int map, uint32_t find_task, uint32_t release_task) {
  constexpr int16_t kTask = in_request(offsetof(Request, task));
  constexpr int16_t kStatus = in_request(offsetof(Request, status));
  return {
      instruction(BPF_LD | BPF_DW | BPF_IMM, 6, BPF_PSEUDO_MAP_VALUE, 0, map),
      instruction(0, 0, 0, 0, 0),
      set(7, 0),
      // loop (3): while r7 < min(count, kRequestsMax)
      load(BPF_W, 1, 6, 0),
      instruction(BPF_JMP | BPF_JGE | BPF_X, 7, 1, 29, 0),
      jump_if(BPF_JGE, 7, KernelMemory::kRequestsMax, 28),
      move(8, 7),
      alu(BPF_LSH, 8, 5),
      add(8, 6),
      // The task of the pid, or nothing. The thread is stopped, so its task stays after the
      // release.
      load(BPF_W, 1, 8, in_request(offsetof(Request, pid))),
      set(3, 0),
      jump_if(BPF_JEQ, 1, 0, 9),
      call_kernel(find_task),
      jump_if(BPF_JNE, 0, 0, 3),
      set(0, kNoTask),
      store(BPF_W, 8, 0, kStatus),
      jump(15),
      // Through memory the pointer becomes a number that arithmetic is allowed on.
      store(BPF_DW, 8, 0, kTask),
      move(1, 0),
      call_kernel(release_task),
      load(BPF_DW, 3, 8, kTask),
      load(BPF_DW, 4, 8, in_request(offsetof(Request, address))),
      add(3, 4),
      load(BPF_W, 2, 8, in_request(offsetof(Request, length))),
      alu(BPF_AND, 2, kLengthMask),
      load(BPF_W, 4, 8, in_request(offsetof(Request, offset))),
      alu(BPF_AND, 4, kResultBytes - 1),
      move(1, 6),
      alu(BPF_ADD, 1, kResults),
      add(1, 4),
      call_helper(BPF_FUNC_probe_read_kernel),
      store(BPF_W, 8, 0, kStatus),
      alu(BPF_ADD, 7, 1),
      jump(-31),
      set(0, 0),
      instruction(BPF_JMP | BPF_EXIT, 0, 0, 0, 0),
  };
}

}  // namespace

KernelMemory::KernelMemory(const BtfTypes& types) {
  static_assert(offsetof(Area, requests) == kRequests);
  static_assert(offsetof(Area, results) == kResults);
  const auto find_task = types.function("bpf_task_from_pid");
  const auto release_task = types.function("bpf_task_release");
  if (!find_task || !release_task) throw SysError("find bpf_task_from_pid", ENOSYS);
  bpf_attr attributes{};
  attributes.map_type = BPF_MAP_TYPE_ARRAY;
  attributes.key_size = sizeof(uint32_t);
  attributes.value_size = sizeof(Area);
  attributes.max_entries = 1;
  attributes.map_flags = BPF_F_MMAPABLE;
  map_.reset(static_cast<int>(bpf(BPF_MAP_CREATE, attributes)));
  if (!map_.valid()) throw SysError::from_errno("create a BPF map");
  load_program(*find_task, *release_task);
  void* area =
      ::mmap(nullptr, page_ceil(sizeof(Area)), PROT_READ | PROT_WRITE, MAP_SHARED, map_.get(), 0);
  if (area == MAP_FAILED) throw SysError::from_errno("map a BPF map");
  area_ = static_cast<Area*>(area);
  (void)::madvise(area, page_ceil(sizeof(Area)), MADV_DONTFORK);  // ours alone
}

KernelMemory::~KernelMemory() {
  if (area_ != nullptr) ::munmap(area_, page_ceil(sizeof(Area)));
}

void KernelMemory::load_program(uint32_t find_task, uint32_t release_task) {
  const std::vector<Instruction> program = make_program(map_.get(), find_task, release_task);
  static constexpr char kLicense[] = "GPL";  // the kernel's helpers ask for it
  bpf_attr attributes{};
  attributes.prog_type = BPF_PROG_TYPE_SYSCALL;
  attributes.prog_flags = BPF_F_SLEEPABLE;
  attributes.insn_cnt = static_cast<uint32_t>(program.size());
  attributes.insns = reinterpret_cast<uint64_t>(program.data());
  attributes.license = reinterpret_cast<uint64_t>(kLicense);
  program_.reset(static_cast<int>(bpf(BPF_PROG_LOAD, attributes)));
  if (!program_.valid()) throw SysError::from_errno("load a BPF program");
}

void KernelMemory::start() {
  area_->count = 0;
  used_ = 0;
}

size_t KernelMemory::ask(uint64_t address, uint32_t length, uint32_t pid) {
  if (area_->count >= kRequestsMax || length > kLengthMax) {
    throw SysError("read kernel memory", E2BIG);
  }
  const uint32_t number = area_->count++;
  area_->requests[number] = {
      .address = address, .pid = pid, .length = length, .offset = used_, .status = 0, .task = 0};
  used_ += (length + 7) & ~7u;
  return number;
}

void KernelMemory::run() {
  bpf_attr attributes{};
  attributes.test.prog_fd = static_cast<uint32_t>(program_.get());
  if (bpf(BPF_PROG_TEST_RUN, attributes) != 0) throw SysError::from_errno("run a BPF program");
}

std::span<const uint8_t> KernelMemory::result(size_t request) const {
  const Request& done = area_->requests[request];
  if (done.status != 0) return {};
  return {area_->results + done.offset, done.length};
}

uint64_t KernelMemory::task(size_t request) const { return area_->requests[request].task; }

}  // namespace replpage
