// Replicas of processes with children.
#include <sys/wait.h>

#include <array>
#include <thread>

#include "core/base/clock.h"
#include "test/followed.h"

namespace replpage::testing {

namespace {

// A process of the family: checks for ever that it is where it was. (The parent of the root is
// another: the keeper.)
[[noreturn]] void stay(Report* report, int number, bool root = false) {
  const pid_t parent = ::getppid(), self = ::getpid(), group = ::getpgid(0), session = ::getsid(0);
  for (;;) {
    if ((!root && ::getppid() != parent) || ::getpid() != self || ::getpgid(0) != group ||
        ::getsid(0) != session) {
      ++report->errors;
    }
    ++report->values[number];
    ::usleep(1000);
  }
}

enum Slot { kRoot, kEarly, kLeader, kGrandchild, kGroupLeader, kMember, kExited, kKilled, kGo };

[[noreturn]] void run_family(Report* report, const std::function<void()>& ready) {
  fork_into([&] { stay(report, kEarly); });
  ::setsid();
  fork_into([&] {
    ::setsid();
    fork_into([&] { stay(report, kGrandchild); });
    stay(report, kLeader);
  });
  const pid_t leader = fork_into([&] {
    ::setpgid(0, 0);
    stay(report, kGroupLeader);
  });
  ::usleep(10'000);
  fork_into([&] {
    ::setpgid(0, leader);
    stay(report, kMember);
  });
  const pid_t exited = fork_into([] { ::_exit(7); });
  const pid_t killed = fork_into([] { ::raise(SIGTERM); });
  report->values[kExited] = static_cast<uint64_t>(exited);
  report->values[kKilled] = static_cast<uint64_t>(killed);
  ready();
  while (report->values[kGo] == 0) ::usleep(1000);
  int status = 0;
  if (::waitpid(exited, &status, 0) != exited || WEXITSTATUS(status) != 7) ++report->errors;
  if (::waitpid(killed, &status, 0) != killed || WTERMSIG(status) != SIGTERM) ++report->errors;
  if (::waitpid(-1, &status, WNOHANG) != 0) ++report->errors;
  if (::kill(leader, SIGKILL) != 0 || ::waitpid(leader, &status, 0) != leader) ++report->errors;
  stay(report, kRoot);
}

ZombieImage zombie_of(const ProcessImage& parent, uint64_t pid, int status) {
  ZombieImage zombie;
  zombie.pid = static_cast<int32_t>(pid);
  zombie.parent = parent.pid;
  zombie.process_group = parent.process_group;
  zombie.session = parent.session;
  zombie.wait_status = status;
  zombie.name = "zombie";
  return zombie;
}

}  // namespace

TEST(replica_of_a_family_runs_on) {
  ReportFile report;
  auto followed = std::make_unique<Followed>(
      [&](const std::function<void()>& ready) { run_family(report.map(), ready); });
  CHECK(wait_for([&] { return report->values[kGrandchild] > 3 && report->values[kMember] > 3; }));
  followed->take_epoch();
  GroupImage image = followed->image;
  CHECK_EQUAL(image.processes.size(), 6u);
  image.zombies = {zombie_of(image.processes[0], report->values[kExited], 7 << 8),
                   zombie_of(image.processes[0], report->values[kKilled], SIGTERM)};
  TestKeeper keeper;
  keeper.apply(image, followed->staging);
  MemoryStaging nothing;
  keeper.apply(image, nothing);  // the same again changes nothing
  end(followed, report);
  std::array<uint64_t, 6> before{};
  for (size_t i = 0; i < before.size(); ++i) before[i] = report->values[i];
  const KeeperAnswer promoted = keeper.promote(image);
  note("promoted 6 processes in " + std::to_string(promoted.took_us) + " us");
  CHECK(wait_for([&] { return report->values[kMember] > before[kMember] + 3; }));
  CHECK(wait_for([&] { return report->values[kGroupLeader] > before[kGroupLeader] + 3; }));
  CHECK(wait_for([&] { return report->values[kEarly] > before[kEarly] + 3; }));
  CHECK(wait_for([&] { return report->values[kGrandchild] > before[kGrandchild] + 3; }));
  CHECK(wait_for([&] { return report->values[kLeader] > before[kLeader] + 3; }));
  report->values[kGo] = 1;
  CHECK(wait_for([&] { return report->values[kRoot] > 3; }));
  CHECK_EQUAL(report->errors.load(), 0u);
}

namespace {

[[noreturn]] void run_changing_family(Report* report, const std::function<void()>& ready) {
  const pid_t doomed = fork_into([&] { stay(report, 1); });
  std::thread([&] { stay(report, 2, true); }).detach();
  ready();
  while (report->values[kGo] == 0) ::usleep(1000);
  ::kill(doomed, SIGKILL);
  ::waitpid(doomed, nullptr, 0);
  fork_into([&] { stay(report, 3); });
  std::thread([&] { stay(report, 4, true); }).detach();
  stay(report, 5, true);
}

}  // namespace

TEST(replica_follows_processes_and_threads) {
  ReportFile report;
  auto followed = std::make_unique<Followed>(
      [&](const std::function<void()>& ready) { run_changing_family(report.map(), ready); });
  CHECK(wait_for([&] { return report->values[1] > 3 && report->values[2] > 3; }));
  TestKeeper keeper;
  followed->take_epoch();
  GroupImage image = followed->image;
  keeper.apply(image, followed->staging);
  report->values[kGo] = 1;
  followed->victim.go_on();
  CHECK(wait_for([&] {
    followed->victim.tree().wait_events(now_ns() + 1'000'000);
    return report->values[3] > 3 && report->values[5] > 3;
  }));
  followed->take_epoch();
  image = followed->image;
  CHECK_EQUAL(image.processes.size(), 2u);
  keeper.apply(image, followed->staging);
  end(followed, report);
  std::array<uint64_t, 6> before{};
  for (size_t i = 0; i < before.size(); ++i) before[i] = report->values[i];
  keeper.promote(image);
  for (const size_t i : {2, 3, 4, 5}) {
    CHECK(wait_for([&] { return report->values[i] > before[i] + 3; }));
  }
  CHECK_EQUAL(report->errors.load(), 0u);
}

}  // namespace replpage::testing
