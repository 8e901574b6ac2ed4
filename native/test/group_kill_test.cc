// Which kills of a child are kills of the root, too.

#include "core/death/group_kill.h"

#include "test/trace_fixture.h"

using namespace replpage;           // NOLINT
using namespace replpage::testing;  // NOLINT

// A root that leads a process group with children in it, which all wait.
struct Family {
  explicit Family(uint64_t children)
      : root([this, children] {
          ::setpgid(0, 0);
          for (uint64_t i = 0; i < children; ++i) {
            const pid_t child = ::fork();
            if (child == 0) sleep_forever();
            board->slots[i] = static_cast<uint64_t>(child);
          }
          board->ready = 1;
          sleep_forever();
        }) {
    CHECK(wait_until([&] { return board->ready == 1; }));
  }
  ~Family() { ::kill(-root.pid, SIGKILL); }
  Family(const Family&) = delete;
  Family& operator=(const Family&) = delete;
  [[nodiscard]] pid_t child(uint64_t i) const { return static_cast<pid_t>(board->slots[i].load()); }

  SharedBoard board;
  Victim root;
};

TEST(a_child_killed_alone_is_told_at_once) {
  Family family(200);
  std::vector<uint64_t> times;
  for (uint64_t i = 0; i < 200; ++i) {
    ::kill(family.child(i), SIGKILL);
    const uint64_t began = now_ns();
    CHECK(!is_killed_along(family.child(i), family.root.pid));
    times.push_back((now_ns() - began) / 1000);
  }
  note("median " + std::to_string(median(times)) + " us");
}

TEST(a_child_killed_with_its_process_group_is_never_taken_for_one_alone) {
  constexpr uint64_t kChildren = 30;
  uint64_t early = 0;
  for (int round = 0; round < 100; ++round) {
    Family family(kChildren);
    std::thread killer([&] {
      ::usleep(500);
      ::kill(-family.root.pid, SIGKILL);
    });
    // The youngest is hit first.
    while (!kill_is_pending(family.child(kChildren - 1))) {
    }
    if (!kill_is_pending(family.root.pid)) ++early;
    CHECK(is_killed_along(family.child(kChildren - 1), family.root.pid));
    killer.join();
  }
  note(std::to_string(early) + " of 100 times the child was hit well before the root");
}

// Its pending masks are empty there, and the tracer may not have seen it yet.
TEST(a_root_at_its_exit_stop_counts_as_killed) {
  Family family(1);
  Recorder recorder;
  recorder.hold_killed = true;
  TraceTree tree(recorder);
  tree.seize(family.root.pid, true);
  ::kill(family.root.pid, SIGKILL);
  ::usleep(50'000);
  CHECK(kill_is_pending(family.root.pid));
  CHECK(is_killed_along(family.child(0), family.root.pid));
  CHECK(!kill_is_pending(family.child(0)));
  CHECK(handle_until(tree, [&] { return recorder.exit_stops > 0; }));
  CHECK(kill_is_pending(family.root.pid));
  tree.release_exit(family.root.pid);
}
