#include "core/access/kernel_pages.h"

#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <vector>

#include "core/base/sys_error.h"

namespace replpage {
namespace {

struct Request {
  uint64_t address = 0;
  int32_t status = 0;
  uint32_t padding = 0;
};
constexpr int32_t kRequestShift = 4, kPageShift = 12;
static_assert(sizeof(Request) == 1 << kRequestShift);
static_assert(kPageSize == 1 << kPageShift);

}  // namespace

// The map's one value, shared with the program.
struct KernelPages::Area {
  uint32_t count;
  uint32_t padding[15];
  Request requests[kPagesMax];
  uint64_t words[kPagesMax * kWords];
};

namespace {

using namespace bpf;

constexpr int16_t kRequests = 64;
constexpr int32_t kResults = kRequests + KernelPages::kPagesMax * sizeof(Request);

// r6: the area, r7: number of the request, r8: area + 16 * number.
std::vector<Instruction> make_program(int map) {
  return {
      instruction(BPF_LD | BPF_DW | BPF_IMM, 6, BPF_PSEUDO_MAP_VALUE, 0, map),
      instruction(0, 0, 0, 0, 0),
      set(7, 0),
      // loop (3): while r7 < min(count, kPagesMax)
      load(BPF_W, 1, 6, 0),
      instruction(BPF_JMP | BPF_JGE | BPF_X, 7, 1, 14, 0),
      jump_if(BPF_JGE, 7, KernelPages::kPagesMax, 13),
      move(8, 7),
      alu(BPF_LSH, 8, kRequestShift),
      add(8, 6),
      load(BPF_DW, 3, 8, kRequests + offsetof(Request, address)),
      move(1, 7),
      alu(BPF_LSH, 1, kPageShift),
      add(1, 6),
      alu(BPF_ADD, 1, kResults),
      set(2, kPageSize),
      call_helper(BPF_FUNC_probe_read_kernel),
      store(BPF_W, 8, 0, kRequests + offsetof(Request, status)),
      alu(BPF_ADD, 7, 1),
      jump(-16),
      set(0, 0),
      instruction(BPF_JMP | BPF_EXIT, 0, 0, 0, 0),
  };
}

}  // namespace

KernelPages::KernelPages() : area_(sizeof(Area)) {
  static_assert(offsetof(Area, requests) == kRequests);
  static_assert(offsetof(Area, words) == kResults);
  program_ = bpf::load_program(BPF_PROG_TYPE_SYSCALL, BPF_F_SLEEPABLE, make_program(area_.map()));
}

void KernelPages::read(std::span<const uint64_t> addresses) {
  if (addresses.size() > kPagesMax) throw SysError("read kernel pages", E2BIG);
  area().count = static_cast<uint32_t>(addresses.size());
  for (size_t i = 0; i < addresses.size(); ++i) {
    area().requests[i] = {.address = addresses[i], .status = -1, .padding = 0};
  }
  bpf_attr attributes{};
  attributes.test.prog_fd = static_cast<uint32_t>(program_.get());
  if (::syscall(SYS_bpf, BPF_PROG_TEST_RUN, &attributes, sizeof attributes) != 0) {
    throw SysError::from_errno("run a BPF program");
  }
}

std::span<const uint64_t> KernelPages::page(size_t number) const {
  if (number >= area().count || area().requests[number].status != 0) return {};
  return {area().words + number * kWords, kWords};
}

}  // namespace replpage
