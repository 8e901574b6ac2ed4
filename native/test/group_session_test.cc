// A group's whole life, as the daemon has it: here its threads come, talk and go under the
// sanitizers, which cannot be had in a daemon.

#include "core/session/group_session.h"

#include <thread>

#include "core/base/clock.h"
#include "test/keeper_fixture.h"

using namespace replpage;                  // NOLINT
using namespace replpage::keeper_testing;  // NOLINT

namespace {

class Listener final : public GroupEvents {
 public:
  void on_progress(uint64_t /*bytes*/, uint64_t /*bytes_total*/) override {}
  void on_died(DeathCause /*cause*/, int /*signal*/, int /*status*/) override {}
  void on_promoted(const PromotionReport& report) override {
    if (stop_at_promotion != 0) ::kill(stop_at_promotion, SIGSTOP);
    exact = report.exact;
    host_pid = report.host_pid;
  }
  void on_drained(uint64_t /*pages*/, uint64_t /*took_us*/) override { drained = true; }
  void on_ended(const std::string& reason, int /*signal*/, int /*status*/) override {
    testing::note("ended: " + reason);
    over = true;
  }
  void on_unprotected(const std::string& reason) override {
    testing::note("unprotected: " + reason);
    over = true;
  }

  std::atomic<bool> exact = false, drained = false, over = false;
  std::atomic<pid_t> host_pid = 0;
  std::atomic<pid_t> stop_at_promotion = 0;  // a keeper that is to hang from there on
};

GroupOptions options_of(pid_t pid, uint64_t generation) {
  GroupOptions options;
  options.name = "session-test-" + std::to_string(::getpid());
  options.generation = generation;
  options.keeper_path = keeper_path();
  options.control_socket = control_path() + "." + std::to_string(generation);
  options.spill_bytes_max = 0;
  options.freeze_deadline_us = 1'000'000;
  options.max_pause_us = 1'000'000;
  options.pid = pid;
  return options;
}

pid_t keeper_of(const GroupSession& session) {
  const pid_t holder = session.replica_parts().holder_pid;
  const std::vector<pid_t> children = children_of(holder, holder);
  CHECK_EQUAL(children.size(), 1u);
  return children.front();
}

// As much as no last epoch copies before the replica runs.
void write_much(pid_t pid) {
  const UniqueFd memory = open_path("/proc/" + std::to_string(pid) + "/mem", O_RDWR);
  for (uint64_t page = 0; page < kPages; ++page) {
    const uint64_t value = value_at(page);
    const auto at = static_cast<off_t>(kBase + page * kPageSize);
    CHECK(::pwrite(memory.get(), &value, sizeof value, at) == sizeof value);
  }
}

uint64_t ms_since(uint64_t began_us) { return (now_us() - began_us) / 1000; }

}  // namespace

TEST(group_session_outlives_kill_after_kill) {
  need_keeper();
  const Program program;
  pid_t pid = program.pid();
  for (uint64_t generation = 1; generation <= 3; ++generation) {
    Listener events;
    GroupSession session(options_of(pid, generation), events);
    CHECK(session.start().epoch > 0);
    for (int i = 0; i < 20; ++i) session.epoch();
    ::kill(pid, SIGKILL);
    CHECK(within(kAnswerMs, [&] { return events.drained || events.over; }));
    CHECK(events.drained && events.exact);
    CHECK(program.runs());
    pid = events.host_pid;
    session.stop();
  }
  CHECK_EQUAL(program.wrong(), 0u);
}

// What is told to stop, what is let go without it, and what is interrupted in its first copy.
TEST(group_session_lets_its_process_go) {
  need_keeper();
  const Program program;
  for (uint64_t generation = 1; generation <= 9; ++generation) {
    Listener events;
    GroupSession session(options_of(program.pid(), generation), events);
    if (generation % 3 == 0) session.interrupt();
    try {
      session.start();
      session.epoch();
    } catch (const std::exception& error) {
      CHECK(generation % 3 == 0);
    }
    if (generation % 3 == 1) session.stop();
    CHECK(!events.over);
  }
  CHECK(program.runs());
  CHECK_EQUAL(program.wrong(), 0u);
}

// Its process lacks what only the keeper fetches: it ends with it, and never reads a zero.
TEST(group_session_does_not_wait_for_ever_for_a_keeper_that_hangs) {
  need_keeper();
  for (int tries = 1;; ++tries) {
    const Program program;
    Listener events;
    GroupOptions options = options_of(program.pid(), static_cast<uint64_t>(100 + tries));
    options.keeper_answer_ms = 2000;
    GroupSession session(std::move(options), events);
    session.start();
    const UniqueFd keeper = pidfd_of(keeper_of(session));
    events.stop_at_promotion = keeper_of(session);
    write_much(program.pid());
    ::kill(program.pid(), SIGKILL);
    CHECK(within(kAnswerMs, [&] { return events.host_pid != 0 || events.over; }));
    CHECK(events.exact);
    const uint64_t began = now_us();
    session.interrupt();
    const std::string loss = session.stop();
    if (loss.empty() && tries < 10) {  // it had all of its memory before the keeper stopped
      ::kill(events.stop_at_promotion, SIGCONT);
      ::kill(events.host_pid, SIGKILL);
      continue;
    }
    testing::note("after " + std::to_string(ms_since(began)) + " ms: " + loss);
    CHECK(has(loss, "fetched nothing"));
    CHECK(within(kAnswerMs, [&] { return events.over.load(); }));  // told once the group is let go
    CHECK(!events.drained);
    CHECK(ends(keeper));
    CHECK_EQUAL(::kill(events.host_pid, 0), -1);
    CHECK_EQUAL(program.wrong(), 0u);
    return;
  }
}

TEST(group_session_is_stopped_while_its_keeper_hangs) {
  need_keeper();
  const Program program;
  Listener events;
  GroupSession session(options_of(program.pid(), 130), events);
  session.start();
  const UniqueFd keeper = pidfd_of(keeper_of(session));
  ::kill(keeper_of(session), SIGSTOP);
  std::atomic<bool> over = false;
  std::thread worker([&] {
    try {
      session.epoch();
    } catch (const KeeperLost& lost) {
      testing::note(lost.what());
    }
    over = true;
  });
  ::usleep(200'000);
  CHECK(!over);
  const uint64_t began = now_us();
  session.interrupt();
  worker.join();
  CHECK_EQUAL(session.stop(), std::string());
  CHECK(ms_since(began) < static_cast<uint64_t>(kAnswerMs));
  CHECK(ends(keeper));
  CHECK(program.runs());
  CHECK_EQUAL(program.wrong(), 0u);
}
