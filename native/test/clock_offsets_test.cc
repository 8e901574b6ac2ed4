#include "core/base/clock_offsets.h"

#include <sched.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "test/keeper_fixture.h"
#include "test/test.h"

namespace replpage {
namespace {

using namespace keeper_testing;

constexpr int64_t kSecond = 1'000'000'000;
constexpr int64_t kHour = 3600 * kSecond;
constexpr int64_t kTolerance = 5 * kSecond;

bool near(int64_t a, int64_t b) {
  const int64_t tolerance = kTolerance * testing::slowness();
  return a - b < tolerance && b - a < tolerance;
}

// Children of this process live by other clocks while such an object lives.
class OtherClocks {
 public:
  explicit OtherClocks(const ClockOffsets& ahead)
      : home_(open_path("/proc/self/ns/time", O_RDONLY)) {
    set_clocks_of_children(ahead);
  }
  ~OtherClocks() { ::setns(home_.get(), CLONE_NEWTIME); }
  OtherClocks(const OtherClocks&) = delete;
  OtherClocks& operator=(const OtherClocks&) = delete;

 private:
  UniqueFd home_;
};

ClockReadings readings_of_child() {
  auto* shared = static_cast<ClockReadings*>(
      ::mmap(nullptr, kPageSize, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  const pid_t child = ::fork();
  if (child == 0) {
    *shared = read_clocks();
    ::_exit(0);
  }
  ::waitpid(child, nullptr, 0);
  const ClockReadings readings = *shared;
  ::munmap(shared, kPageSize);
  return readings;
}

void need_time_namespaces() {
  if (::geteuid() != 0) SKIP("needs root");
  if (::access("/proc/self/timens_offsets", F_OK) != 0) SKIP("no time namespaces here");
}

TEST(offsets_of_clocks_never_make_them_step_back) {
  // Theirs went on until ours was read, however long that took.
  const ClockReadings theirs{.monotonic_ns = 100, .boottime_ns = 200};
  const ClockReadings ours{.monotonic_ns = 1'000, .boottime_ns = 50};
  CHECK(ahead_of(theirs, ours) == (ClockOffsets{900, -150}));
  const ClockOffsets sum = ClockOffsets{1, 2} + ClockOffsets{10, 20};
  CHECK(sum == (ClockOffsets{11, 22}));
  CHECK((sum - ClockOffsets{1, 2} == ClockOffsets{10, 20}));
  CHECK_EQUAL(sum.of(CLOCK_MONOTONIC_RAW), 11);
  CHECK_EQUAL(sum.of(CLOCK_BOOTTIME), 22);
  CHECK_EQUAL(sum.of(CLOCK_REALTIME), 0);
}

TEST(children_live_by_the_clocks_that_they_were_given) {
  need_time_namespaces();
  const ClockReadings now = read_clocks();
  // Back by no whole number of seconds, and far ahead.
  const ClockOffsets ahead{-now.monotonic_ns / 2 - 1, 30 * 24 * kHour + 7};
  const OtherClocks other(ahead);
  const ClockReadings child = readings_of_child();
  CHECK(near(child.monotonic_ns, now.monotonic_ns + ahead.monotonic_ns));
  CHECK(near(child.boottime_ns, now.boottime_ns + ahead.boottime_ns));
  CHECK(near(read_clocks().monotonic_ns, now.monotonic_ns));
  CHECK(clock_offsets_of(::getpid()) == ahead && clocks_of_children() == ahead);
}

TEST(clocks_that_would_be_before_their_start_are_refused) {
  need_time_namespaces();
  const pid_t child = ::fork();
  if (child == 0) {
    try {
      set_clocks_of_children({-1'000'000 * kHour, 0});
    } catch (const SysError& error) {
      ::_exit(error.error() == ERANGE ? 7 : 8);
    }
    ::_exit(9);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  CHECK_EQUAL(WEXITSTATUS(status), 7);
}

// Linux 6.1 lets nobody share memory, even as vfork(2) does, across time namespaces; 6.12 does.
bool spawns_into_other_clocks() {
  const OtherClocks other({kSecond, kSecond});
  const char* const arguments[] = {"/bin/true", nullptr};
  pid_t pid = 0;
  if (::posix_spawn(&pid, arguments[0], nullptr, nullptr, const_cast<char**>(arguments), environ) !=
      0) {
    return false;
  }
  ::waitpid(pid, nullptr, 0);
  return true;
}

// The keeper's machine was started hours after, or before, the primary's: as on two nodes.
void promote_with_clocks_apart(const ClockOffsets& keepers_ahead) {
  if (!spawns_into_other_clocks()) SKIP("no keeper can be started by other clocks than ours here");
  Victim victim;
  Stage stage(victim);
  std::optional<KeeperProcess> keeper;
  {
    const OtherClocks other(keepers_ahead);
    const ClockReadings theirs = readings_of_child();
    keeper = spawn(stage.staging(), 1, {.machine = ahead_of(theirs, read_clocks()), .inside = {}});
  }
  stage.bring_to_epoch(keeper->channel);
  victim.board().leap_ns = 0;
  stage.send_promotion(keeper->channel, UniqueFd());
  answer_of(keeper->channel, MessageType::kPromoted);
  const uint64_t before = victim.board().rounds;
  CHECK(within(10'000, [&] { return victim.board().rounds > before + 1000; }));
  CHECK(near(victim.board().clock_ns, read_clocks().monotonic_ns));
  CHECK_EQUAL(victim.board().wrong, 0u);
  testing::note("leapt by " + std::to_string(victim.board().leap_ns / 1000) + " us");
  CHECK(victim.board().leap_ns < kTolerance * testing::slowness());
  // The timer was set for a moment of the primary's clock, before all this.
  CHECK(within(10'000, [&] { return victim.board().timer_ns != 0; }));
  const int64_t late = victim.board().timer_ns - victim.board().deadline_ns;
  testing::note("timer late by " + std::to_string(late / 1000) + " us");
  CHECK(late >= 0 && late < kTolerance * testing::slowness());
  ask("end");
}

TEST(a_replica_on_a_machine_that_was_started_later_goes_on_by_its_clocks) {
  need_keeper();
  need_time_namespaces();
  const ClockReadings now = read_clocks();
  promote_with_clocks_apart({-now.monotonic_ns * 3 / 4, -now.boottime_ns / 2});
}

TEST(a_replica_on_a_machine_that_was_started_earlier_goes_on_by_its_clocks) {
  need_keeper();
  need_time_namespaces();
  promote_with_clocks_apart({9 * kHour, 11 * kHour});
}

TEST(a_replica_whose_clock_is_behind_is_given_up) {
  need_keeper();
  need_time_namespaces();
  Victim victim;
  Stage stage(victim);
  // Measured wrongly, or drifted: its clock is ten seconds behind the primary's.
  KeeperProcess keeper =
      spawn(stage.staging(), 1, {.machine = {-10 * kSecond, -10 * kSecond}, .inside = {}});
  keeper.channel.send(MessageType::kBuild, ImageMessage{1, stage.image()});
  answer_of(keeper.channel, MessageType::kBuilt);
  keeper.channel.send(MessageType::kCommit, ImageMessage{1, stage.image()});
  const ReceivedMessage answer = answer_of(keeper.channel, MessageType::kFailed);
  CHECK(has(decode<FailedMessage>(answer.body).reason, "behind its primary's"));
}

}  // namespace
}  // namespace replpage
