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

  void on_drilled(const std::string& /*node*/, uint64_t epoch, uint64_t compared,
                  const DrilledMessage& message) override {
    drill = message;
    compared_pages = compared;
    drill_epoch = epoch;
    drilled = true;
  }
  void on_replica_out(const std::string& node, const std::string& why) override {
    testing::note("out: " + node + ": " + why);
    out = true;
  }
  void on_replica_in_sync(const std::string& node, uint64_t epoch) override {
    testing::note("in sync: " + node);
    in_sync_since = epoch;
  }

  DrilledMessage drill;  // once `drilled`
  std::atomic<bool> drilled = false;
  std::atomic<uint64_t> compared_pages = 0;
  std::atomic<uint64_t> drill_epoch = 0, in_sync_since = 0;
  std::atomic<bool> out = false;
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

// Another keeper on this machine, as on another node: it gets no descriptors.
class OtherPlace final : public ReplicaPlace {
 public:
  explicit OtherPlace(ReplicaOptions options) : options_(std::move(options)) {}
  KeeperProcess start(const StagingArea& staging) override {
    KeeperProcess keeper = spawn_keeper_of(options_, 0, staging);
    keeper_pid = keeper.keeper;
    return keeper;
  }
  void end() override {}
  std::atomic<pid_t> keeper_pid = 0;

 private:
  const ReplicaOptions options_;
};

std::shared_ptr<OtherPlace> other_place(const GroupOptions& group, const std::string& name) {
  ReplicaOptions options = group;
  options.name += name;
  options.control_socket += name;
  return std::make_shared<OtherPlace>(options);
}

// Until it is told what came of it.
void drill(GroupSession& session, const GroupOptions& group, const Listener& events) {
  ReplicaOptions options = group;
  options.name += ".drill";
  options.control_socket += ".drill";
  options.drill = true;
  CHECK(session.drill(options, {}, 500'000));
  CHECK(within(kAnswerMs, [&] {
    session.epoch();
    return events.drilled.load();
  }));
}

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

// What joins gets what was there and what is written meanwhile; who is lost is left out.
TEST(group_session_has_replicas_come_and_go) {
  need_keeper();
  const Program program;
  Listener events;
  const GroupOptions options = options_of(program.pid(), 201);
  const auto other = other_place(options, ".other");
  {
    GroupSession session(options, events);
    session.start();
    CHECK(session.join(1, {.node = "other", .place = other}));
    CHECK(!session.join(2, {.node = "third", .place = other}));  // one at a time
    CHECK(within(kAnswerMs, [&] {
      session.epoch();
      return events.in_sync_since != 0;
    }));
    CHECK_EQUAL(session.replica_parts().replicas.size(), 2u);
    write_much(program.pid());
    session.epoch();
    for (const ReplicaView& replica : session.replica_parts().replicas) {
      CHECK(replica.state == ReplicaState::kInSync);
    }
    ::kill(keeper_of(session), SIGKILL);
    CHECK(within(kAnswerMs, [&] { return events.out.load(); }));
    session.epoch();
    CHECK(!events.over);
    // A kill is answered by the one that is left, from what it was given.
    ::kill(program.pid(), SIGKILL);
    CHECK(within(kAnswerMs, [&] { return events.drained || events.over; }));
    CHECK(events.drained && events.exact);
    CHECK(program.runs());
    session.stop();
  }
  CHECK_EQUAL(program.wrong(), 0u);
}

// One that comes while another joins, and one that is lost and comes again: each gets everything.
TEST(group_session_gives_everything_to_whoever_joins) {
  need_keeper();
  const Program program;
  Listener events;
  const GroupOptions options = options_of(program.pid(), 205);
  const auto one = other_place(options, ".one");
  const auto two = other_place(options, ".two");
  const auto resident = [](const GroupSession& session, const std::string& node) {
    for (const ReplicaView& replica : session.replica_parts().replicas) {
      if (replica.node == node && replica.state == ReplicaState::kInSync) {
        return replica.resident_bytes;
      }
    }
    return uint64_t{0};
  };
  GroupSession session(options, events);
  session.start();
  const uint64_t whole = resident(session, "");
  CHECK(session.join(1, {.node = "one", .place = one}));
  bool asked = false;
  CHECK(within(kAnswerMs, [&] {
    session.epoch();
    asked = asked || session.join(2, {.node = "two", .place = two});
    return resident(session, "one") != 0 && resident(session, "two") != 0;
  }));
  session.epoch();
  CHECK(resident(session, "one") + (1 << 20) > whole);
  CHECK(resident(session, "two") + (1 << 20) > whole);
  for (int again = 0; again < 3; ++again) {
    events.out = false;
    ::kill(two->keeper_pid, SIGKILL);
    CHECK(within(kAnswerMs, [&] { return events.out.load(); }));
    CHECK(within(kAnswerMs, [&] { return session.join(2, {.node = "two", .place = two}); }));
    CHECK(within(kAnswerMs, [&] {
      session.epoch();
      return resident(session, "two") != 0;
    }));
    session.epoch();
    CHECK(resident(session, "two") + (1 << 20) > whole);
  }
  session.stop();
  CHECK_EQUAL(program.wrong(), 0u);
}

// All of them: the primary runs on.
TEST(group_session_without_any_replica_is_over) {
  need_keeper();
  const Program program;
  Listener events;
  GroupOptions options = options_of(program.pid(), 202);
  const auto other = other_place(options, ".other");
  options.homes = {{.node = {}, .place = nullptr}, {.node = "other", .place = other}};
  GroupSession session(options, events);
  session.start();
  const pid_t here = keeper_of(session);
  ::kill(other->keeper_pid, SIGKILL);
  CHECK(within(kAnswerMs, [&] { return events.out.load(); }));
  CHECK(!events.over);
  ::kill(here, SIGKILL);
  CHECK(within(kAnswerMs, [&] { return events.over.load(); }));
  CHECK(program.runs());
  CHECK_EQUAL(program.wrong(), 0u);
}

// The program tells of itself through a mapped file, which a drill would write to.
TEST(group_session_does_not_try_out_what_writes_to_a_file) {
  need_keeper();
  const Program program;
  Listener events;
  const GroupOptions options = options_of(program.pid(), 203);
  GroupSession session(options, events);
  session.start();
  drill(session, options, events);
  CHECK(events.drill.problem.starts_with("it writes to "));
  CHECK(events.compared_pages >= kPages);
  session.epoch();
  CHECK_EQUAL(session.replica_parts().replicas.size(), 1u);
  CHECK(!events.over && program.runs());
  session.stop();
  CHECK_EQUAL(program.wrong(), 0u);
}

TEST(group_session_finds_a_page_of_a_replica_that_is_not_the_primarys) {
  need_keeper();
  const Program program;
  Listener events;
  const GroupOptions options = options_of(program.pid(), 204);
  GroupSession session(options, events);
  session.start();
  const pid_t keeper = keeper_of(session);
  const UniqueFd memory =
      open_path("/proc/" + std::to_string(children_of(keeper, keeper).front()) + "/mem", O_RDWR);
  const uint64_t wrong = ~value_at(7);
  const uint64_t address = kBase + 7 * kPageSize;
  CHECK(::pwrite(memory.get(), &wrong, sizeof wrong, static_cast<off_t>(address)) == sizeof wrong);
  drill(session, options, events);
  testing::note(events.drill.problem);
  CHECK(events.drill.problem.starts_with("the page at " + std::to_string(address)));
  session.stop();
}
