#include "core/base/proc_stat.h"

#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>

#include "core/base/archive.h"
#include "test/test.h"

namespace replpage {
namespace {

template <class Work>
bool is_refused(Work work) {
  try {
    work();
    return false;
  } catch (const FormatError&) {
    return true;
  }
}

TEST(proc_stat_counts_fields_from_behind_the_name) {
  const ProcStat stat("17 (a) b) (c) S 4 5 6 -1 8 9 10\n");
  CHECK_EQUAL(stat.name(), std::string("a) b) (c"));
  CHECK_EQUAL(stat.state(), 'S');
  CHECK_EQUAL(stat[ProcStat::kParent], 4u);
  CHECK_EQUAL(static_cast<int64_t>(stat[7]), -1);
  CHECK_EQUAL(stat[10], 10u);
  for (const char* text : {"", "17", "17 (a", "17 (a)", "17 a) S", ") S 1 ("}) {
    CHECK(is_refused([&] { ProcStat{text}; }));
  }
  CHECK(is_refused([&] { (void)stat[3]; }));
  CHECK(is_refused([&] { (void)stat[ProcStat::kExitCode]; }));
}

TEST(proc_stat_tells_of_the_dead) {
  const pid_t child = ::fork();
  if (child == 0) {
    ::prctl(PR_SET_NAME, "x) R 1 (");
    ::raise(SIGUSR1);
  }
  siginfo_t info{};
  CHECK(::waitid(P_PID, static_cast<id_t>(child), &info, WEXITED | WNOWAIT) == 0);
  const auto stat = ProcStat::of(child);
  CHECK(stat && stat->is_dead() && is_dead(child, child));
  CHECK_EQUAL(stat->name(), std::string("x) R 1 ("));
  CHECK_EQUAL((*stat)[ProcStat::kParent], static_cast<uint64_t>(::getpid()));
  CHECK_EQUAL((*stat)[ProcStat::kExitCode], static_cast<uint64_t>(SIGUSR1));
  ::waitpid(child, nullptr, 0);
  CHECK(!ProcStat::of(child) && is_dead(child, child));
  CHECK(!is_dead(::getpid(), ::getpid()));
}

}  // namespace
}  // namespace replpage
