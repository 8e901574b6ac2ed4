// Waits for tracees that have an end.

#include "core/restore/wait_limit.h"

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/base/clock.h"
#include "core/base/sys_error.h"
#include "core/restore/remote_thread.h"
#include "test/test.h"

using namespace replpage;           // NOLINT
using namespace replpage::testing;  // NOLINT

namespace {

constexpr uint64_t kLimitUs = 100'000;

// A child that waits, and ends with the scope.
struct Sleeper {
  Sleeper() {
    if (pid == 0) {
      for (;;) ::pause();
    }
  }
  ~Sleeper() {
    ::kill(pid, SIGKILL);
    ::waitpid(pid, nullptr, __WALL);
  }
  Sleeper(const Sleeper&) = delete;
  Sleeper& operator=(const Sleeper&) = delete;

  const pid_t pid = ::fork();
};

int error_of_wait(pid_t tid) {
  try {
    wait_for_tracee(tid, "wait for a sleeper");
  } catch (const SysError& error) {
    return error.error();
  }
  return 0;
}

}  // namespace

TEST(a_wait_for_a_tracee_ends_when_its_limit_has_passed) {
  const Sleeper sleeper;
  RemoteThread thread = RemoteThread::seize(sleeper.pid);
  const uint64_t began = now_us();
  {
    const WaitLimit limit(kLimitUs);
    CHECK_EQUAL(error_of_wait(thread.tid()), ETIMEDOUT);
    CHECK(now_us() - began >= kLimitUs);
    // One that begins after the limit has passed ends as well.
    CHECK_EQUAL(error_of_wait(thread.tid()), ETIMEDOUT);
  }
  ::kill(sleeper.pid, SIGKILL);
  CHECK(WIFSIGNALED(thread.wait_end()));
}

TEST(a_limit_within_another_gives_it_back) {
  const Sleeper sleeper;
  RemoteThread thread = RemoteThread::seize(sleeper.pid);
  const WaitLimit outer(kLimitUs);
  { const WaitLimit inner(60'000'000); }
  CHECK_EQUAL(error_of_wait(thread.tid()), ETIMEDOUT);
}

TEST(a_limit_that_has_not_passed_disturbs_nothing) {
  const Sleeper sleeper;
  RemoteThread thread = RemoteThread::seize(sleeper.pid);
  const WaitLimit limit(60'000'000);
  ::kill(sleeper.pid, SIGKILL);
  CHECK(WIFSIGNALED(thread.wait_end()));
}
