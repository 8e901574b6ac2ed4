// The keeper through its real messages: it starts, follows, ends with its tracer, lets a replica
// run and serves its missing pages; and nothing that kills it makes a missing page read as zero.
#include <sys/stat.h>

#include <random>

#include "core/base/clock.h"
#include "core/link/keeper_lost.h"
#include "test/keeper_fixture.h"

namespace replpage {
namespace {

using namespace keeper_testing;

// The victim is this program started anew, so that nothing of the test is in it.
__attribute__((constructor)) void become_victim(int argc, char** argv) {
  if (argc == 2 && std::strcmp(argv[0], kVictimName) == 0) victim_body(map_board(argv[1]));
}

// ---- tests

TEST(keeper_starts_and_ends_with_its_tracer) {
  need_keeper();
  StagingArea staging({});
  std::optional<KeeperProcess> keeper = spawn(staging);
  for (const std::string& note : keeper->notes) testing::note(note);
  const std::string status = ask("status");
  CHECK(has(status, "\"state\":\"standby\"") && has(status, "\"exited\":false"));
  struct stat facts {};
  CHECK(::stat(control_path().c_str(), &facts) == 0 && (facts.st_mode & 0777) == 0600);
  const auto holder = read_proc("/proc/" + std::to_string(keeper->holder) + "/status");
  CHECK(holder && field_of(*holder, "PPid") != std::to_string(::getpid()));
  const auto inner = read_proc("/proc/" + std::to_string(keeper->keeper) + "/status");
  CHECK(inner && field_of(*inner, "NSpid") == std::to_string(keeper->keeper) + "\t1");
  const UniqueFd holder_pidfd = pidfd_of(keeper->holder);
  const UniqueFd pidfd = std::move(keeper->pidfd);
  keeper.reset();  // closes the channel
  CHECK(ends(pidfd) && ends(holder_pidfd));
  CHECK(::access(control_path().c_str(), F_OK) != 0);
}

TEST(keeper_and_holder_do_not_outlive_each_other_in_standby) {
  need_keeper();
  StagingArea staging({});
  for (const bool kill_holder : {false, true}) {
    KeeperProcess keeper = spawn(staging);
    const UniqueFd holder = pidfd_of(keeper.holder);
    CHECK(::kill(kill_holder ? keeper.holder : keeper.keeper, SIGKILL) == 0);
    CHECK(ends(keeper.pidfd) && ends(holder));
    while (keeper.channel.receive(1000)) {
    }
    CHECK(keeper.channel.closed());
  }
}

TEST(keeper_refuses_damage_and_says_so) {
  need_keeper();
  StagingArea staging({});
  const auto failure_after = [&](auto send) {
    KeeperProcess keeper = spawn(staging);
    send(keeper.channel);
    const ReceivedMessage answer = answer_of(keeper.channel, MessageType::kFailed);
    CHECK(ends(keeper.pidfd));
    return decode<FailedMessage>(answer.body).reason;
  };
  GroupImage empty;
  const StagedBytes image = staging.put(empty);
  StagedBytes damaged = image;
  damaged.crc ^= 1;
  CHECK(has(failure_after([&](Channel& c) {
              c.send(MessageType::kBuild, ImageMessage{0, damaged});
            }),
            "damaged"));
  StagedBytes outside = image;
  outside.offset = staging.memory_bytes() + 4096;
  CHECK(has(failure_after([&](Channel& c) {
              c.send(MessageType::kBuild, ImageMessage{0, outside});
            }),
            "outside"));
  CHECK(has(failure_after([&](Channel& c) {
              c.send(MessageType::kBuild, ImageMessage{0, image});
            }),
            "no process"));
  CHECK(!failure_after([&](Channel& c) {
           c.send(MessageType::kPages, PagesMessage{0, image});
         }).empty());
  CHECK(!failure_after([&](Channel& c) { c.send(MessageType::kReady, Bytes{}); }).empty());
  CHECK(!failure_after([&](Channel& c) {
           const char byte = 'x';
           CHECK(::send(c.fd(), &byte, 1, 0) == 1);
         }).empty());
}

TEST(keeper_start_reports_why_it_failed) {
  need_keeper();
  StagingArea staging({});
  std::string reason;
  try {
    spawn_keeper({.executable = keeper_path(),
                  .name = "x",
                  .generation = 1,
                  .primary = 0,
                  .control_socket = "/nonexistent/socket",
                  .stdio = -1,
                  .stdio_path = {}},
                 staging);
  } catch (const KeeperLost& lost) {
    reason = lost.what();
  }
  CHECK(has(reason, "/nonexistent/socket"));
  bool no_executable = false;
  try {
    spawn_keeper({.executable = "/nonexistent/keeper",
                  .name = "x",
                  .generation = 1,
                  .primary = 0,
                  .control_socket = control_path(),
                  .stdio = -1,
                  .stdio_path = {}},
                 staging);
  } catch (const SysError& error) {
    no_executable = error.error() == ENOENT;
  }
  CHECK(no_executable);
}

TEST(keeper_lets_a_replica_run_and_outlives_its_tracer) {
  need_keeper();
  Victim victim;
  Stage stage(victim);
  std::optional<KeeperProcess> keeper = spawn(stage.staging());
  stage.bring_to_epoch(keeper->channel);
  const uint64_t rounds = victim.board().rounds;
  stage.send_promotion(keeper->channel, UniqueFd());
  const auto promoted =
      decode<PromotedMessage>(answer_of(keeper->channel, MessageType::kPromoted).body);
  CHECK_EQUAL(promoted.pid, victim.group_pid());
  const auto inner = read_proc("/proc/" + std::to_string(promoted.host_pid) + "/status");
  CHECK(inner && has(std::string(field_of(*inner, "NSpid").value_or("")),
                     "\t" + std::to_string(promoted.pid)));
  answer_of(keeper->channel, MessageType::kDrained);
  CHECK(within(5000, [&] { return victim.board().rounds > rounds; }));
  const UniqueFd pidfd = std::move(keeper->pidfd);
  keeper.reset();
  ::usleep(50'000);
  CHECK(has(ask("status"), "\"state\":\"promoted\""));
  victim.board().end = 7;
  const std::string ended = ask("wait");
  CHECK(has(ended, "\"state\":\"ended\"") && has(ended, "\"exited\":true") &&
        has(ended, "\"status\":1792"));
  CHECK(ends(pidfd));
  CHECK_EQUAL(victim.board().wrong.load(), 0u);
  testing::note("promoted in " + std::to_string(promoted.promote_us) + " us");
}

TEST(keeper_serves_missing_pages_until_drained) {
  need_keeper();
  Victim victim;
  Stage stage(victim);
  KeeperProcess keeper = spawn(stage.staging());
  stage.bring_to_epoch(keeper.channel);
  stage.send_promotion(keeper.channel, victim.memory());
  const auto promoted =
      decode<PromotedMessage>(answer_of(keeper.channel, MessageType::kPromoted).body);
  const auto drained =
      decode<DrainedMessage>(answer_of(keeper.channel, MessageType::kDrained).body);
  CHECK_EQUAL(drained.pages, kPages);
  const uint64_t rounds = victim.board().rounds;
  CHECK(within(5000, [&] { return victim.board().rounds > rounds + 100'000; }));
  CHECK_EQUAL(victim.board().wrong.load(), 0u);
  testing::note("promoted in " + std::to_string(promoted.promote_us) + " us, drained in " +
                std::to_string(drained.took_us) + " us");
  CHECK(has(ask("end"), "promoted"));
  CHECK(has(ask("wait"), "\"state\":\"ended\""));
  CHECK(ends(keeper.pidfd));
}

TEST(a_killed_keeper_or_holder_never_makes_a_missing_page_read_zero) {
  need_keeper();
  Victim victim;
  Stage stage(victim);
  std::mt19937 random(42);
  // Each of them takes seconds on an emulated machine.
  const uint64_t tries = 200 / static_cast<uint64_t>(testing::slowness());
  uint64_t while_lazy = 0;
  for (uint64_t i = 0; i < tries; ++i) {
    KeeperProcess keeper = spawn(stage.staging(), i + 1);
    stage.bring_to_epoch(keeper.channel);
    stage.send_promotion(keeper.channel, victim.memory());
    answer_of(keeper.channel, MessageType::kPromoted);
    ::usleep(random() % 20'000);
    const bool kill_holder = i % 4 == 3;
    if (!keeper.channel.receive(0)) ++while_lazy;
    // Without its holder a keeper serves on.
    if (kill_holder) {
      CHECK(::kill(keeper.holder, SIGKILL) == 0);
      answer_of(keeper.channel, MessageType::kDrained);
      CHECK(has(ask("status"), "\"state\":\"promoted\""));
    }
    CHECK(::kill(keeper.keeper, SIGKILL) == 0);
    CHECK(ends(keeper.pidfd));
    CHECK_EQUAL(victim.board().wrong.load(), 0u);
  }
  testing::note(std::to_string(while_lazy) + " of " + std::to_string(tries) +
                " kills came while pages were missing");
  CHECK(while_lazy > tries / 4);
}

// The memory of the last epoch may be gone when its state has been sent already.
TEST(keeper_promotes_the_committed_epoch_after_the_state_of_another) {
  need_keeper();
  Victim victim;
  Stage stage(victim);
  KeeperProcess keeper = spawn(stage.staging());
  stage.bring_to_epoch(keeper.channel);
  stage.send_state_of_next_epoch(keeper.channel);
  stage.send_promotion(keeper.channel, victim.memory());
  const auto promoted =
      decode<PromotedMessage>(answer_of(keeper.channel, MessageType::kPromoted).body);
  CHECK_EQUAL(promoted.epoch, 1u);
  answer_of(keeper.channel, MessageType::kDrained);
  const uint64_t rounds = victim.board().rounds;
  CHECK(within(5000, [&] { return victim.board().rounds > rounds; }));
  CHECK_EQUAL(victim.board().wrong.load(), 0u);
  CHECK(has(ask("end"), "promoted"));
  CHECK(has(ask("wait"), "\"state\":\"ended\""));
  CHECK(ends(keeper.pidfd));
}

TEST(a_source_that_goes_away_kills_the_group) {
  need_keeper();
  Victim victim;
  Stage stage(victim);
  const pid_t gone = ::fork();
  if (gone == 0) ::_exit(::pause());
  const UniqueFd memory = open_path("/proc/" + std::to_string(gone) + "/mem", O_RDONLY);
  ::kill(gone, SIGKILL);
  ::waitpid(gone, nullptr, 0);
  KeeperProcess keeper = spawn(stage.staging());
  stage.bring_to_epoch(keeper.channel);
  stage.send_promotion(keeper.channel, memory);
  // The loss is seen before or after the replica runs; nothing says kPromoted then kDrained.
  std::optional<ReceivedMessage> answer = next_of(keeper.channel);
  while (answer &&
         (answer->type == MessageType::kPromoted || answer->type == MessageType::kDraining)) {
    answer = next_of(keeper.channel);
  }
  CHECK(answer.has_value());
  CHECK_EQUAL(static_cast<int>(answer->type), static_cast<int>(MessageType::kFailed));
  testing::note(decode<FailedMessage>(answer->body).reason);
  (void)ask("wait");
  CHECK(ends(keeper.pidfd));
  CHECK_EQUAL(victim.board().wrong.load(), 0u);
}

}  // namespace
}  // namespace replpage
