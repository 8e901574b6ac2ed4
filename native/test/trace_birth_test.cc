// Threads and processes that are born while their tree is traced.

#include <unistd.h>

#include "test/trace_fixture.h"

using namespace replpage;           // NOLINT
using namespace replpage::testing;  // NOLINT

TEST(new_threads_and_processes_are_followed) {
  SharedBoard board;
  Victim victim([&] {
    while (board->ready == 0) ::usleep(100);
    for (int i = 0; i < 200; ++i) {
      std::thread([&] { ++board->count; }).join();
    }
    for (int i = 0; i < 50; ++i) {
      const pid_t child = ::fork();
      if (child == 0) ::_exit(7);
      int status = 0;
      ::waitpid(child, &status, 0);
      if (!WIFEXITED(status) || WEXITSTATUS(status) != 7) ++board->errors;
    }
    for (int i = 0; i < 50; ++i) {
      const pid_t child = ::vfork();
      if (child == 0) {
        ::execl("/bin/true", "true", nullptr);
        ::_exit(1);
      }
      int status = 0;
      ::waitpid(child, &status, 0);
      if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) ++board->errors;
    }
    ::_exit(3);
  });
  Recorder recorder;
  TraceTree tree(recorder);
  tree.seize(victim.pid, true);
  board->ready = 1;
  handle_for(tree, 20'000);
  CHECK(tree.processes().empty());
  CHECK_EQUAL(board->errors.load(), 0u);
  CHECK_EQUAL(board->count.load(), 200u);
  CHECK(recorder.new_threads >= 30 && recorder.new_threads <= 200);  // fewer when it is fast
  CHECK_EQUAL(recorder.new_processes, 100);
  CHECK_EQUAL(recorder.executions, 50);
  CHECK_EQUAL(WEXITSTATUS(recorder.gone.at(victim.pid)), 3);
  CHECK_EQUAL(victim.wait_end(), 3 << 8);
}

TEST(fast_thread_creation_is_not_followed_but_every_freeze_is_whole) {
  SharedBoard board;
  Victim victim([&] {
    start_threads(2, [&](int) {
      while (board->stop == 0) {
        std::thread([&] { ++board->count; }).join();
        // Some live longer: few, since all share one processor on small machines.
        if (board->count % 256 == 0)
          std::thread([&] {
            for (;;) ++board->value;
          }).detach();
        if (board->count > 2000) break;
      }
      ++board->ready;
      for (;;) ++board->value;
    });
    while (board->stop == 0) ::usleep(1000);
    ::_exit(5);
  });
  CHECK(wait_until([&] { return board->count > 3; }));
  Recorder recorder;
  TraceTree tree(recorder);
  tree.seize(victim.pid, true);
  CHECK(tree.follows_all_threads(victim.pid));
  int frozen = 0;
  bool loose = false;
  const auto freeze_and_check = [&] {
    const FreezeResult result = tree.freeze(500'000);
    if (result.frozen) {
      ++frozen;
      const uint64_t before = board->count + board->value;
      ::usleep(200);
      CHECK_EQUAL(before, board->count + board->value);
      // One that was let go at its exit stop may be listed a moment longer.
      const std::string tasks = "/proc/" + std::to_string(victim.pid) + "/task";
      const size_t known = tree.processes().at(victim.pid).threads.size();
      CHECK(wait_until([&] { return numeric_entries(tasks).value().size() == known; }, 1000));
    }
    tree.thaw();
  };
  while (board->ready < 2) {
    handle_for(tree, 5);
    freeze_and_check();
    loose = loose || !tree.follows_all_threads(victim.pid);
  }
  CHECK(frozen > 5);
  CHECK(loose);
  for (int i = 0; i < 6; ++i) {
    handle_for(tree, 500);
    freeze_and_check();
  }
  CHECK(tree.follows_all_threads(victim.pid));
  board->stop = 1;
  handle_for(tree, 10'000);
  CHECK(tree.processes().empty());
  CHECK_EQUAL(victim.wait_end(), 5 << 8);
}

// A child that was not followed is found by a freeze, and stands still in it like all others.
TEST(children_of_a_forking_process_are_found_by_freezes) {
  SharedBoard board;
  Victim victim([&] {
    for (uint64_t round = 0; board->stop == 0; ++round) {
      const pid_t child = ::fork();
      if (child == 0) {
        // Now and then one that lives on, with a child of its own.
        if (round % 100 == 99 && ::fork() == 0) ::usleep(20'000);
        if (round % 100 == 99) ::usleep(20'000);
        ++board->count;
        ::_exit(0);
      }
      int status = 0;
      ::waitpid(child, &status, 0);
      if (status != 0) ++board->errors;
      ++board->value;
    }
  });
  CHECK(wait_until([&] { return board->value > 3; }));
  Recorder recorder;
  TraceTree tree(recorder);
  tree.seize(victim.pid, true);
  CHECK(tree.follows_all_children(victim.pid));
  bool loose = false;
  size_t others = 0;
  for (int i = 0; i < 200; ++i) {
    handle_for(tree, 7);
    const FreezeResult result = tree.freeze(100'000);
    if (!result.frozen) continue;
    const uint64_t before = board->count + board->value;
    ::usleep(300);
    CHECK_EQUAL(before, board->count + board->value);
    loose = loose || !tree.follows_all_children(victim.pid);
    if (!tree.follows_all_children(victim.pid)) others += tree.processes().size() - 1;
    CHECK(tree.follows_all_threads(victim.pid));
    tree.thaw();
  }
  if (!loose && slowness() > 1) SKIP("no process forks often enough here to be let loose");
  CHECK(loose);
  CHECK(others > 0);
  CHECK_EQUAL(board->errors.load(), 0u);
  board->stop = 1;
  handle_for(tree, 10'000);
  CHECK(tree.processes().empty());
}

TEST(churn_under_freezes_goes_on_correctly) {
  SharedBoard board;
  Victim victim([&] {
    start_threads(2, [&](int) {
      while (board->stop == 0) std::thread([&] { ++board->count; }).join();
      ++board->ready;
    });
    start_threads(2, [&](int number) {
      while (board->stop == 0) {
        const pid_t child = number == 0 ? ::fork() : ::vfork();
        if (child == 0) {
          ::execl("/bin/true", "true", nullptr);
          ::_exit(1);
        }
        int status = 0;
        ::waitpid(child, &status, 0);
        if (status != 0) ++board->errors;
        ++board->value;
      }
      ++board->ready;
    });
    while (board->ready < 4) ::usleep(1000);
    ::_exit(0);
  });
  CHECK(wait_until([&] { return board->count > 3 && board->value > 1; }));
  Recorder recorder;
  TraceTree tree(recorder);
  tree.seize(victim.pid, true);
  int frozen = 0;
  std::map<std::string, int> reasons;
  for (int i = 0; i < 300; ++i) {
    const FreezeResult result = tree.freeze(20'000);
    if (result.frozen) {
      ++frozen;
      const uint64_t before = board->count + board->value;
      ::usleep(100);
      CHECK_EQUAL(before, board->count + board->value);
    } else {
      ++reasons[result.reason.substr(0, 4) + result.reason.substr(result.reason.find(' ', 8))];
    }
    tree.thaw();
    handle_for(tree, 1);
  }
  note("frozen under churn: " + std::to_string(frozen) + " of 300, " +
       std::to_string(board->count.load()) + " threads, " + std::to_string(board->value.load()) +
       " programs");
  int shown = 0;
  for (const auto& [reason, count] : reasons) {
    if (++shown < 6) note("  " + std::to_string(count) + " x " + reason);
  }
  CHECK(frozen > 50);
  const uint64_t before = board->count;
  handle_for(tree, 100);
  CHECK(board->count > before);
  board->stop = 1;
  handle_for(tree, 20'000);
  CHECK(tree.processes().empty());
  CHECK_EQUAL(board->errors.load(), 0u);
  CHECK_EQUAL(victim.wait_end(), 0);
}
