// TraceTree against small victims. Every victim has a parent of its own, outside the tracer.

#include <sys/epoll.h>
#include <sys/ipc.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/sem.h>
#include <unistd.h>

#include "test/trace_fixture.h"

using namespace replpage;           // NOLINT
using namespace replpage::testing;  // NOLINT

TEST(tree_freezes_and_thaws_sleeping_threads) {
  for (const int threads : {1, 16, 128}) {
    SharedBoard board;
    Victim victim([&] {
      start_threads(threads - 1, [&](int) {
        ++board->ready;
        sleep_forever();
      });
      sleep_forever();
    });
    CHECK(wait_until([&] { return board->ready == static_cast<uint64_t>(threads - 1); }));
    Recorder recorder;
    TraceTree tree(recorder);
    tree.seize(victim.pid, true);
    CHECK_EQUAL(tree.processes().at(victim.pid).threads.size(), static_cast<size_t>(threads));
    std::vector<uint64_t> times;
    for (int i = 0; i < 20; ++i) {
      const FreezeResult result = tree.freeze(1'000'000);
      CHECK_EQUAL(result.reason, "");
      CHECK(result.frozen);
      times.push_back(result.took_us);
      for (const auto& [tid, thread] : tree.processes().at(victim.pid).threads) {
        CHECK(thread.stop == StopKind::kInterrupt);
      }
      tree.thaw();
      handle_for(tree, 1);
    }
    note("freeze of " + std::to_string(threads) + " sleeping threads: median " +
         std::to_string(median(times)) + " us");
    tree.detach();
  }
}

TEST(tree_freezes_spinning_threads) {
  SharedBoard board;
  Victim victim([&] {
    start_threads(4, [&](int i) {
      ++board->ready;
      for (;;) ++board->slots[i];
    });
    sleep_forever();
  });
  CHECK(wait_until([&] { return board->ready == 4; }));
  Recorder recorder;
  TraceTree tree(recorder);
  tree.seize(victim.pid, true);
  std::vector<uint64_t> times;
  for (int i = 0; i < 30; ++i) {
    const FreezeResult result = tree.freeze(1'000'000);
    CHECK_EQUAL(result.reason, "");
    times.push_back(result.took_us);
    const uint64_t before = board->slots[0] + board->slots[1] + board->slots[2] + board->slots[3];
    ::usleep(500);
    const uint64_t after = board->slots[0] + board->slots[1] + board->slots[2] + board->slots[3];
    CHECK_EQUAL(before, after);
    tree.thaw();
    handle_for(tree, 2);
  }
  note("freeze of 4 spinning threads: median " + std::to_string(median(times)) + " us");
}

// Each wake waits for the answer to the last one, so a lost one would hang.
uint64_t wakes_answered(TraceTree& tree, uint64_t count) {
  std::atomic<bool> done{false};
  std::atomic<uint64_t> woken{0};
  std::thread waker([&] {
    for (uint64_t i = 0; i < count; ++i) {
      tree.wake();
      const uint64_t end = now_ns() + 5'000 * kMs;
      while (woken.load() <= i && now_ns() < end) {
      }
      if (woken.load() <= i) break;
    }
    done = true;
    tree.wake();
  });
  while (!done) {
    tree.wait_events(now_ns() + 6'000 * kMs);
    ++woken;
  }
  waker.join();
  return woken;
}

TEST(wait_events_returns_at_its_deadline_and_when_woken) {
  Victim victim([] { sleep_forever(); });
  Recorder recorder;
  TraceTree tree(recorder);
  tree.seize(victim.pid, true);
  const uint64_t start = now_ns();
  handle_for(tree, 20);
  const uint64_t took = now_ns() - start;
  CHECK(took >= 20 * kMs && took < 200 * kMs);
  CHECK(wakes_answered(tree, 20'000) >= 20'000);
}

// All of a user's processes share RLIMIT_SIGPENDING: somebody else may have queued so many.
TEST(no_wake_is_lost_while_no_signal_can_be_queued) {
  Victim victim([] { sleep_forever(); });
  Recorder recorder;
  TraceTree tree(recorder);
  tree.seize(victim.pid, true);
  rlimit before{};
  CHECK_EQUAL(::getrlimit(RLIMIT_SIGPENDING, &before), 0);
  const rlimit none{0, before.rlim_max};
  CHECK_EQUAL(::setrlimit(RLIMIT_SIGPENDING, &none), 0);
  const uint64_t answered = wakes_answered(tree, 200);
  const uint64_t start = now_ns();
  handle_for(tree, 20);
  const uint64_t took = now_ns() - start;
  CHECK_EQUAL(::setrlimit(RLIMIT_SIGPENDING, &before), 0);
  CHECK(answered >= 200);
  CHECK(took >= 20 * kMs && took < 200 * kMs);
}

// Blocks in calls that give EINTR after any stop; see signal(7).
TEST(endless_waits_are_not_interrupted_by_freezes) {
  SharedBoard board;
  Victim victim([&] {
    start_threads(3, [&](int i) {
      const int epoll = ::epoll_create1(0);
      epoll_event event{};
      sigset_t set;
      sigemptyset(&set);
      sigaddset(&set, SIGUSR1);
      pthread_sigmask(SIG_BLOCK, &set, nullptr);
      const int semaphores = ::semget(IPC_PRIVATE, 1, 0600);
      sembuf take{.sem_num = 0, .sem_op = -1, .sem_flg = 0};
      ++board->ready;
      if (i == 0) ::epoll_wait(epoll, &event, 1, -1);
      if (i == 1) ::sigtimedwait(&set, nullptr, nullptr);
      if (i == 2) {
        board->value = static_cast<uint64_t>(semaphores);
        ::semop(semaphores, &take, 1);
      }
      ++board->count;
    });
    sleep_forever();
  });
  CHECK(wait_until([&] { return board->ready == 3; }));
  ::usleep(20'000);
  Recorder recorder;
  TraceTree tree(recorder);
  tree.seize(victim.pid, true);
  for (int i = 0; i < 50; ++i) {
    CHECK(tree.freeze(500'000).frozen);
    tree.thaw();
    handle_for(tree, 1);
  }
  tree.detach();
  ::usleep(20'000);
  CHECK_EQUAL(board->count.load(), 0u);
  ::semctl(static_cast<int>(board->value.load()), 0, IPC_RMID);
  CHECK(wait_until([&] { return board->count == 1; }));
}

TEST(execve_by_another_thread_is_followed) {
  SharedBoard board;
  Victim victim([&] {
    start_threads(3, [&](int) {
      ++board->ready;
      sleep_forever();
    });
    std::thread([&] {
      while (board->stop == 0) ::usleep(100);
      ::execl("/bin/sleep", "sleep", "1000", nullptr);
    }).detach();
    sleep_forever();
  });
  CHECK(wait_until([&] { return board->ready == 3; }));
  Recorder recorder;
  TraceTree tree(recorder);
  tree.seize(victim.pid, true);
  board->stop = 1;
  handle_for(tree, 300);
  CHECK_EQUAL(recorder.executions, 1);
  CHECK_EQUAL(tree.processes().at(victim.pid).threads.size(), 1u);
  CHECK(tree.freeze(100'000).frozen);
  tree.thaw();
  ::kill(victim.pid, SIGTERM);
  handle_for(tree, 5'000);
  CHECK_EQUAL(recorder.gone.at(victim.pid), SIGTERM);
  CHECK_EQUAL(victim.wait_end(), SIGTERM);
}

TEST(attaching_in_the_middle_of_an_execve_does_not_hang) {
  uint64_t retries = 0;
  uint64_t slowest_us = 0;
  for (int round = 0; round < 150; ++round) {
    SharedBoard board;
    Victim victim([&] {
      start_threads(12, [&](int i) {
        ++board->ready;
        if (i != 11) sleep_forever();
        while (board->stop == 0) {
        }
        const uint64_t start = now_ns();
        while (now_ns() - start < static_cast<uint64_t>(round) * 1'000) {
        }
        ::execl("/bin/sleep", "sleep", "1000", nullptr);
      });
      sleep_forever();
    });
    CHECK(wait_until([&] { return board->ready == 12; }));
    ::usleep(2000);
    Recorder recorder;
    TraceTree tree(recorder);
    board->stop = 1;
    const uint64_t start = now_us();
    tree.seize(victim.pid, true);
    slowest_us = std::max(slowest_us, now_us() - start);
    retries += tree.counters().seize_retries;
    CHECK(wait_until([&] {
      handle_for(tree, 1);
      return state_of(victim.pid).starts_with("S") &&
             tree.processes().at(victim.pid).threads.size() == 1;
    }));
    CHECK(tree.freeze(500'000).frozen);
  }
  note(std::to_string(retries) + " retries, slowest attach " + std::to_string(slowest_us) + " us");
}

TEST(a_process_that_somebody_else_traces_is_refused) {
  Victim victim([] { sleep_forever(); });
  int fds[2];
  CHECK(::pipe(fds) == 0);
  TracerProcess other([&] {
    ::ptrace(PTRACE_SEIZE, victim.pid, 0, 0);
    (void)!::write(fds[1], "x", 1);
    sleep_forever();
  });
  char c;
  CHECK(::read(fds[0], &c, 1) == 1);
  ::close(fds[0]);
  ::close(fds[1]);
  Recorder recorder;
  TraceTree tree(recorder);
  int error = 0;
  try {
    tree.seize(victim.pid, true);
  } catch (const SysError& refused) {
    error = refused.error();
  }
  CHECK_EQUAL(error, EPERM);
  other.kill();
  tree.seize(victim.pid, true);
  CHECK_EQUAL(tree.processes().size(), 1u);
  error = 0;
  TraceTree none(recorder);
  try {
    none.seize(4'194'300, true);
  } catch (const SysError& refused) {
    error = refused.error();
  }
  CHECK_EQUAL(error, ESRCH);
}

TEST(a_vfork_wait_abandons_a_freeze_at_once) {
  SharedBoard board;
  Victim victim([&] {
    while (board->stop == 0) ::usleep(100);
    if (::vfork() == 0) {
      while (board->value == 0) {
      }
      ::execl("/bin/true", "true", nullptr);
      ::_exit(1);
    }
    sleep_forever();
  });
  Recorder recorder;
  TraceTree tree(recorder);
  tree.seize(victim.pid, true);
  board->stop = 1;
  CHECK(wait_until([&] {
    handle_for(tree, 1);
    return tree.processes().size() == 2;
  }));
  handle_for(tree, 5);
  for (int i = 0; i < 10; ++i) {
    const FreezeResult result = tree.freeze(100'000);
    CHECK(!result.frozen);
    CHECK(result.reason.find("vfork") != std::string::npos);
    CHECK(result.took_us < 20'000);
    handle_for(tree, 1);
  }
  board->value = 1;
  CHECK(wait_until([&] {
    handle_for(tree, 1);
    return tree.processes().size() == 1;
  }));
  CHECK(tree.freeze(100'000).frozen);
  CHECK_EQUAL(tree.counters().abandoned, 10u);
}
