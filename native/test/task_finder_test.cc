#include "core/image/task_finder.h"

#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <optional>

#include "core/base/sys_error.h"
#include "test/test.h"

using namespace replpage;           // NOLINT
using namespace replpage::testing;  // NOLINT

TEST(task_finder_knows_threads_until_it_finds_them_gone) {
  std::optional<TaskFinder> finder;
  try {
    finder.emplace(BtfTypes::load());
  } catch (const SysError& error) {
    SKIP(std::string("the kernel has no such iterator, or does not let us: ") + error.what());
  }
  const auto own = static_cast<uint32_t>(::syscall(SYS_gettid));
  CHECK_EQUAL(finder->known(own), 0u);
  const uint64_t task = finder->find(own);
  CHECK(task > uint64_t{1} << 63);  // in the kernel's half
  CHECK_EQUAL(finder->known(own), task);
  const pid_t child = ::fork();
  if (child == 0) {
    for (;;) ::pause();
  }
  const auto tid = static_cast<uint32_t>(child);
  const uint64_t other = finder->find(tid);
  CHECK(other != 0 && other != task);
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
  CHECK_EQUAL(finder->known(tid), other);
  CHECK_EQUAL(finder->find(tid), 0u);
  CHECK_EQUAL(finder->known(tid), 0u);
}
