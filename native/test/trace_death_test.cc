// TraceTree and the ends of processes: with exit stops, and without.
#include <sys/ptrace.h>
#include <unistd.h>

#include "test/trace_fixture.h"

using namespace replpage;           // NOLINT
using namespace replpage::testing;  // NOLINT

TEST(ends_are_seen_without_exit_stops_too) {
  SharedBoard board;
  Victim victim([&] {
    while (board->ready == 0) ::usleep(100);
    for (int i = 0; i < 30; ++i) {
      std::thread([&] { ++board->count; }).join();
      const pid_t child = ::fork();
      if (child == 0) ::_exit(7);
      int status = 0;
      ::waitpid(child, &status, 0);
      if (status != 7 << 8) ++board->errors;
    }
    ::raise(SIGTERM);
  });
  Recorder recorder;
  TraceTree tree(recorder);
  tree.seize(victim.pid, false);
  board->ready = 1;
  for (int i = 0; i < 30; ++i) {
    const bool frozen = tree.freeze(100'000).frozen;
    if (frozen) tree.thaw();
    handle_for(tree, 1);
  }
  handle_for(tree, 20'000);
  CHECK(tree.processes().empty());
  CHECK_EQUAL(recorder.exit_stops, 0);
  CHECK_EQUAL(board->errors.load(), 0u);
  CHECK_EQUAL(recorder.gone.at(victim.pid), SIGTERM);
  CHECK_EQUAL(victim.wait_end(), SIGTERM);
}

TEST(a_killed_root_is_held_at_its_exit_stops) {
  SharedBoard board;
  Victim victim([&] {
    start_threads(2, [&](int i) {
      for (;;) ++board->slots[i];
    });
    start_threads(1, [&](int) { ::sleep(1000); });
    if (::fork() == 0) {
      board->value = static_cast<uint64_t>(::getpid());
      board->ready = 1;
      for (;;) ++board->count;
    }
    sleep_forever();
  });
  CHECK(wait_until([&] { return board->ready == 1; }));
  Recorder recorder;
  recorder.hold_killed = true;
  TraceTree tree(recorder);
  tree.seize(victim.pid, true);
  CHECK_EQUAL(tree.processes().size(), 2u);
  ::kill(victim.pid, SIGKILL);
  const uint64_t start = now_ns();
  while (recorder.exit_stops == 0) handle_for(tree, 1);
  const FreezeResult result = tree.freeze_around_death(victim.pid, 100'000);
  note("killed root held after " + std::to_string((now_ns() - start) / 1000) + " us");
  CHECK_EQUAL(result.reason, "");
  const TracedProcess& root = tree.processes().at(victim.pid);
  CHECK_EQUAL(root.threads.size(), 4u);
  for (const auto& [tid, thread] : root.threads) CHECK(thread.stop == StopKind::kExit);
  const auto child = static_cast<pid_t>(board->value.load());
  CHECK(tree.processes().at(child).threads.at(child).stop == StopKind::kInterrupt);
  const uint64_t count = board->count;
  // The owner may go on waiting meanwhile.
  const uint64_t waited = now_ns();
  handle_for(tree, 20);
  CHECK(now_ns() - waited >= 20 * kMs);
  CHECK_EQUAL(board->count.load(), count);
  CHECK_EQUAL(victim.wait_end(10), -1);
  tree.kill_process(child);
  handle_for(tree, 50);
  CHECK(!tree.processes().contains(child));
  std::vector<pid_t> tids;
  for (const auto& [tid, thread] : root.threads) tids.push_back(tid);
  for (const pid_t tid : tids) tree.release_exit(tid);
  CHECK_EQUAL(victim.wait_end(), SIGKILL);
  handle_for(tree, 50);
  CHECK_EQUAL(recorder.gone.at(victim.pid), SIGKILL);
  CHECK(tree.processes().empty());
}

TEST(a_root_killed_while_frozen_is_still_held_at_its_exit_stops) {
  for (int round = 0; round < 40; ++round) {
    SharedBoard board;
    Victim victim([&] {
      start_threads(2, [&](int i) {
        ++board->ready;
        for (;;) ++board->slots[i];
      });
      ++board->ready;
      sleep_forever();
    });
    CHECK(wait_until([&] { return board->ready == 3; }));
    Recorder recorder;
    recorder.hold_killed = true;
    TraceTree tree(recorder);
    tree.seize(victim.pid, true);
    CHECK(tree.freeze(1'000'000).frozen);
    ::kill(victim.pid, SIGKILL);
    ::usleep(static_cast<useconds_t>(round * 20));
    tree.thaw();
    CHECK(wait_until([&] {
      handle_for(tree, 1);
      return recorder.exit_stops > 0;
    }));
    CHECK_EQUAL(tree.freeze_around_death(victim.pid, 1'000'000).reason, "");
    CHECK_EQUAL(tree.processes().at(victim.pid).threads.size(), 3u);
    tree.kill_process(victim.pid);
    CHECK_EQUAL(victim.wait_end(), SIGKILL);
  }
}

// Who kills a tree goes from one process to the next, while they are frozen for the first one.
TEST(a_child_killed_within_the_freeze_around_a_death_stands_at_its_exit_stops_in_the_next) {
  for (int round = 0; round < 40; ++round) {
    SharedBoard board;
    Victim victim([&] {
      if (::fork() == 0) {
        start_threads(2, [&](int i) {
          ++board->ready;
          for (;;) ++board->slots[i];
        });
        board->value = static_cast<uint64_t>(::getpid());
        ++board->ready;
      }
      sleep_forever();
    });
    CHECK(wait_until([&] { return board->ready == 3; }));
    const auto child = static_cast<pid_t>(board->value.load());
    Recorder recorder;
    recorder.hold_killed = true;
    recorder.hold_children = true;
    TraceTree tree(recorder);
    tree.seize(victim.pid, true);
    ::kill(victim.pid, SIGKILL);
    CHECK(handle_until(tree, [&] { return recorder.exit_stops > 0; }));
    CHECK_EQUAL(tree.freeze_around_death(victim.pid, 1'000'000).reason, "");
    CHECK(tree.stands_still());
    ::kill(child, SIGKILL);
    ::usleep(static_cast<useconds_t>(round * 5));
    CHECK(!tree.stands_still());
    CHECK_EQUAL(tree.freeze_around_death(victim.pid, 1'000'000).reason, "");
    CHECK(tree.stands_still());
    const TracedProcess& killed = tree.processes().at(child);
    CHECK_EQUAL(killed.threads.size(), 3u);
    for (const auto& [tid, thread] : killed.threads) CHECK(thread.stop == StopKind::kExit);
    tree.kill_process(child);
    tree.kill_process(victim.pid);
    CHECK_EQUAL(victim.wait_end(), SIGKILL);
  }
}
