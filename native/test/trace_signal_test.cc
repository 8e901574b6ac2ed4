// No signal is lost: queued real-time signals are counted by the victim while a tracer freezes,
// thaws and is killed at random moments.

#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "test/trace_fixture.h"

using namespace replpage;           // NOLINT
using namespace replpage::testing;  // NOLINT

namespace {

Board* counting_board = nullptr;

// Values come in order, each once: a lost or doubled one shows.
void count_signal(int, siginfo_t* info, void*) {
  const auto value = static_cast<uint64_t>(info->si_value.sival_int);
  if (value != counting_board->value + 1) ++counting_board->errors;
  counting_board->value = value;
  ++counting_board->count;
}

// Handles SIGRTMIN in the main thread; the others spin, sleep and compute.
void counting_victim(Board* board) {
  counting_board = board;
  struct sigaction action {};
  action.sa_sigaction = count_signal;
  action.sa_flags = SA_SIGINFO;
  start_threads(1, [board](int) {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, nullptr);
    double x = 1.0;
    for (;;) {
      x = x * 1.0000001 + 0.5;
      if (x > 1e9) x = 1.0;
      ++board->slots[0];
    }
  });
  ::usleep(5000);
  sigaction(SIGRTMIN, &action, nullptr);
  board->ready = 1;
  while (board->stop == 0) ::usleep(200);
  ::_exit(0);
}

// Sends 1, 2, 3 ... as fast as `per_second` says, from another process.
class Sender {
 public:
  Sender(pid_t victim, Board* board, int per_second)
      : process_([=] {
          uint64_t& sent = board->order_next[0];
          while (board->stop == 0) {
            sigval value{};
            value.sival_int = static_cast<int>(sent + 1);
            if (::sigqueue(victim, SIGRTMIN, value) == 0) {
              ++sent;
            } else if (errno != EAGAIN) {
              break;
            }
            ::usleep(1'000'000 / static_cast<unsigned>(per_second));
          }
        }) {}
  void join() { process_.wait_end(); }

 private:
  TracerProcess process_;
};

void trace_and_freeze(pid_t pid, Board* board) {
  Recorder recorder;
  TraceTree tree(recorder);
  tree.seize(pid, true);
  for (;;) {
    const FreezeResult result = tree.freeze(20'000);
    if (result.frozen) ++board->slots[1];
    tree.thaw();
    handle_for(tree, 1);
  }
}

void check_all_received(SharedBoard& board, Victim& victim, Sender& sender) {
  board->stop = 1;
  sender.join();
  CHECK_EQUAL(victim.wait_end(), 0);
  CHECK_EQUAL(board->errors.load(), 0u);
  CHECK(board->value.load() >= board->order_next[0] - 1);
}

// Its handler of SIGSEGV runs until it is told to return.
void crash_handling_victim(Board* board) {
  counting_board = board;
  struct sigaction action {};
  action.sa_handler = [](int) {
    counting_board->ready = 2;
    while (counting_board->slots[0] == 0) ::usleep(200);
  };
  sigaction(SIGSEGV, &action, nullptr);
  board->ready = 1;
  while (board->stop == 0) {
    if (board->slots[0] == 1) board->ready = 3;
    ::usleep(200);
  }
}

}  // namespace

TEST(a_handler_of_a_crash_is_noticed_until_it_returns) {
  SharedBoard board;
  Victim victim([&] { crash_handling_victim(board.board); });
  CHECK(wait_until([&] { return board->ready == 1; }));
  Recorder recorder;
  TraceTree tree(recorder);
  tree.seize(victim.pid, true);
  const auto look = [&] {
    CHECK(tree.freeze(100'000).frozen);
    std::string found = tree.crash_being_handled();
    tree.thaw();
    return found;
  };
  const auto wait_for_ready = [&](uint64_t value) {
    for (int i = 0; i < 1000 && board->ready != value; ++i) handle_for(tree, 1);
    CHECK_EQUAL(board->ready.load(), value);
  };
  CHECK_EQUAL(look(), std::string());
  ::kill(victim.pid, SIGSEGV);
  wait_for_ready(2);
  CHECK_EQUAL(look(), "thread " + std::to_string(victim.pid) + " handles signal 11");
  board->slots[0] = 1;
  wait_for_ready(3);
  CHECK_EQUAL(look(), std::string());
  tree.detach();
  board->stop = 1;
}

TEST(signals_pass_while_the_tree_is_frozen_and_thawed) {
  SharedBoard board;
  Victim victim([&] { counting_victim(board.board); });
  CHECK(wait_until([&] { return board->ready == 1; }));
  Recorder recorder;
  TraceTree tree(recorder);
  tree.seize(victim.pid, true);
  Sender sender(victim.pid, board.board, 3000);
  int held = 0;
  int frozen = 0;
  for (int i = 0; i < 400; ++i) {
    const FreezeResult result = tree.freeze(100'000);
    frozen += result.frozen ? 1 : 0;
    for (const auto& [tid, thread] : tree.processes().at(victim.pid).threads) {
      held += thread.stop == StopKind::kSignal ? 1 : 0;
    }
    if (i % 8 == 0) {
      // The owner may wait for events in between, also beside a kept signal.
      handle_for(tree, 1);
    }
    tree.thaw();
    handle_for(tree, 1);
  }
  tree.detach();
  check_all_received(board, victim, sender);
  note(std::to_string(board->count.load()) + " signals, " + std::to_string(frozen) + " freezes, " +
       std::to_string(held) + " signals held in them");
  CHECK(frozen > 350);
}

TEST(signals_pass_when_the_tracer_is_killed_at_random_moments) {
  SharedBoard board;
  Victim victim([&] { counting_victim(board.board); });
  CHECK(wait_until([&] { return board->ready == 1; }));
  Sender sender(victim.pid, board.board, 4000);
  ::srandom(static_cast<unsigned>(now_ns()));
  for (int i = 0; i < 200; ++i) {
    TracerProcess tracer([&] { trace_and_freeze(victim.pid, board.board); });
    const long us = (2000 + ::random() % 8000) * slowness();
    ::usleep(static_cast<useconds_t>(us));
    tracer.kill();
  }
  const uint64_t spins = board->slots[0];
  CHECK(wait_until([&] { return board->slots[0] > spins; }));
  check_all_received(board, victim, sender);
  note(std::to_string(board->count.load()) + " signals, 200 tracers killed, " +
       std::to_string(board->slots[1].load()) + " freezes");
  CHECK(board->slots[1] > 100);
}

TEST(signals_held_at_detach_are_delivered) {
  for (int round = 0; round < 30; ++round) {
    SharedBoard board;
    Victim victim([&] { counting_victim(board.board); });
    CHECK(wait_until([&] { return board->ready == 1; }));
    Recorder recorder;
    TraceTree tree(recorder);
    tree.seize(victim.pid, true);
    // Not handled yet, so that the stop is found by the freeze.
    for (int i = 1; i <= 3; ++i) {
      sigval value{};
      value.sival_int = i;
      ::sigqueue(victim.pid, SIGRTMIN, value);
    }
    CHECK(tree.freeze(100'000).frozen);
    tree.detach();
    CHECK(wait_until([&] { return board->count == 3; }));
    board->stop = 1;
    CHECK_EQUAL(victim.wait_end(), 0);
    CHECK_EQUAL(board->errors.load(), 0u);
  }
}
