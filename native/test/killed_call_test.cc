// System calls that a kill has ended.
#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "core/base/unique_fd.h"
#include "core/image/interrupted_call.h"
#include "test/test.h"

using namespace replpage;           // NOLINT
using namespace replpage::testing;  // NOLINT

constexpr int64_t kAgain = -513;  // ERESTARTNOINTR

static int64_t settled(uint64_t call, int descriptor, uint64_t length, uint64_t result) {
  ThreadImage image;
  image.host_tid = static_cast<int32_t>(::syscall(SYS_gettid));
  image.registers.orig_rax = call;
  image.registers.rdi = static_cast<uint64_t>(descriptor);
  image.registers.rdx = length;
  image.registers.rax = result;
  settle_killed_call(image);
  return static_cast<int64_t>(image.registers.rax);
}

TEST(a_positional_write_that_a_kill_cut_short_is_done_again) {
  const UniqueFd plain(::open("/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
  const UniqueFd appending(::open("/tmp", O_TMPFILE | O_RDWR | O_APPEND | O_CLOEXEC, 0600));
  CHECK(plain.valid() && appending.valid());
  CHECK_EQUAL(settled(SYS_pwrite64, plain.get(), 65536, 4096), kAgain);
  CHECK_EQUAL(settled(SYS_pread64, plain.get(), 65536, 4096), kAgain);
  CHECK_EQUAL(settled(SYS_pwrite64, plain.get(), 65536, 65536), 65536);
  CHECK_EQUAL(settled(SYS_pwrite64, plain.get(), 65536, 0), 0);
  CHECK_EQUAL(settled(SYS_pwrite64, appending.get(), 65536, 4096), 4096);
  CHECK_EQUAL(settled(SYS_write, plain.get(), 65536, 4096), 4096);
}
