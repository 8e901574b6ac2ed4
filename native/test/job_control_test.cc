// Processes that are stopped by job control.

#include "core/image/process_capture.h"
#include "test/trace_fixture.h"

using namespace replpage;           // NOLINT
using namespace replpage::testing;  // NOLINT

TEST(group_stops_are_kept_and_continued) {
  SharedBoard board;
  Victim victim([&] {
    start_threads(1, [&](int) {
      for (;;) ++board->count;
    });
    sleep_forever();
  });
  CHECK(wait_until([&] { return board->count > 0; }));
  Recorder recorder;
  TraceTree tree(recorder);
  tree.seize(victim.pid, true);
  const auto runs = [&] {
    const uint64_t before = board->count;
    handle_for(tree, 20);
    return board->count != before;
  };
  // A loaded machine may take a while to deliver what was sent.
  const auto becomes = [&](bool running) {
    for (int i = 0; i < 100; ++i) {
      if (runs() == running) return true;
    }
    return false;
  };
  CHECK(runs());
  ::kill(victim.pid, SIGSTOP);
  CHECK(becomes(false));
  for (int i = 0; i < 20; ++i) {
    CHECK(tree.freeze(100'000).frozen);
    CHECK(tree.processes().at(victim.pid).threads.begin()->second.stop == StopKind::kGroupStop);
    tree.thaw();
    CHECK(!runs());
  }
  // Continued while frozen: runs after the thaw.
  CHECK(tree.freeze(100'000).frozen);
  ::kill(victim.pid, SIGCONT);
  tree.thaw();
  CHECK(becomes(true));
  // Stopped while frozen.
  CHECK(tree.freeze(100'000).frozen);
  ::kill(victim.pid, SIGSTOP);
  tree.thaw();
  CHECK(becomes(false));
  // Detached in group stop: stays stopped.
  tree.detach();
  const uint64_t before = board->count;
  ::usleep(20'000);
  CHECK_EQUAL(board->count.load(), before);
  CHECK_EQUAL(state_of(victim.pid).substr(0, 1), "T");
  ::kill(victim.pid, SIGCONT);
  CHECK(wait_until([&] { return board->count > before; }));
}

// What the kernel forgets of a stopped process when it is killed. `end` kills it.
static bool is_stopped_when_killed(const std::function<void(TraceTree&, pid_t)>& end) {
  SharedBoard board;
  Victim victim([&] {
    start_threads(2, [&](int) {
      ++board->ready;
      sleep_forever();
    });
    sleep_forever();
  });
  CHECK(wait_until([&] { return board->ready == 2; }));
  Recorder recorder;
  recorder.hold_killed = true;
  TraceTree tree(recorder);
  tree.seize(victim.pid, true);
  ::kill(victim.pid, SIGSTOP);
  handle_for(tree, 50);
  CHECK_EQUAL(state_of(victim.pid).substr(0, 1), "t");
  end(tree, victim.pid);
  CHECK(wait_until([&] {
    handle_for(tree, 1);
    return recorder.exit_stops > 0;
  }));
  CHECK_EQUAL(tree.freeze_around_death(victim.pid, 1'000'000).reason, "");
  ProcessCaptureInput input{.host_pid = victim.pid, .host_tids = {}, .inject = {}};
  for (const auto& [tid, thread] : tree.processes().at(victim.pid).threads) {
    input.host_tids.push_back(tid);
    input.job_stopped |= thread.job_stopped;
  }
  input.killed = input.host_tids;
  const auto image = capture_process(input);
  CHECK(image.has_value());
  tree.kill_process(victim.pid);
  CHECK_EQUAL(victim.wait_end(), SIGKILL);
  return image->job_control == JobControl::kStopped;
}

TEST(a_stopped_process_that_is_killed_counts_as_stopped) {
  CHECK(is_stopped_when_killed([](TraceTree&, pid_t pid) { ::kill(pid, SIGKILL); }));
  CHECK(is_stopped_when_killed([](TraceTree& tree, pid_t pid) {
    CHECK(tree.freeze(1'000'000).frozen);
    ::kill(pid, SIGKILL);
    tree.thaw();
  }));
}

TEST(one_that_was_continued_before_it_was_killed_does_not) {
  for (int round = 0; round < 10; ++round) {
    CHECK(!is_stopped_when_killed([&](TraceTree& tree, pid_t pid) {
      ::kill(pid, SIGCONT);
      if (round % 2 == 1) handle_for(tree, static_cast<uint64_t>(round));
      ::kill(pid, SIGKILL);
    }));
    CHECK(!is_stopped_when_killed([&](TraceTree& tree, pid_t pid) {
      CHECK(tree.freeze(1'000'000).frozen);
      ::kill(pid, SIGCONT);
      if (round % 2 == 1) tree.thaw();
      ::kill(pid, SIGKILL);
      if (round % 2 == 0) tree.thaw();
    }));
  }
}
