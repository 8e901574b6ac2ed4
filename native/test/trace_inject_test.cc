// Injected system calls: right results, and a victim that notices nothing, also when the tracer is
// killed in the middle of them.

#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstddef>
#include <cstring>
#include <sstream>
#include <string>

#include "test/trace_fixture.h"

using namespace replpage;           // NOLINT
using namespace replpage::testing;  // NOLINT

// void replpage_test_spin(std::atomic<uint64_t>* turns, std::atomic<uint64_t>* errors,
//                         std::atomic<uint64_t>* stop)
// Holds a known value in every register and in the red zone, and looks at all of them each turn.
asm(R"(
  .data
  .p2align 5
spin_vector: .quad 0x0123456789abcdef, 0xfedcba9876543210
spin_stack:  .quad 0
  .text
  .type replpage_test_spin, @function
replpage_test_spin:
  pushq %rbx
  pushq %rbp
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, spin_stack(%rip)
  movq $0x1001, %rax
  movq $0x1002, %rbx
  movq $0x1003, %rcx
  movq $0x1004, %rbp
  movq $0x1005, %r8
  movq $0x1006, %r9
  movq $0x1007, %r10
  movq $0x1008, %r11
  movq $0x1009, %r12
  movq $0x100a, %r13
  movq $0x100b, %r14
  movq $0x100c, %r15
  movq $0x100d, -8(%rsp)
  movq $0x100e, -128(%rsp)
  movdqa spin_vector(%rip), %xmm0
  movdqa spin_vector(%rip), %xmm15
  std
1:
  cmpq $0x1001, %rax
  jne 2f
  cmpq $0x1002, %rbx
  jne 2f
  cmpq $0x1003, %rcx
  jne 2f
  cmpq $0x1004, %rbp
  jne 2f
  cmpq $0x1005, %r8
  jne 2f
  cmpq $0x1006, %r9
  jne 2f
  cmpq $0x1007, %r10
  jne 2f
  cmpq $0x1008, %r11
  jne 2f
  cmpq $0x1009, %r12
  jne 2f
  cmpq $0x100a, %r13
  jne 2f
  cmpq $0x100b, %r14
  jne 2f
  cmpq $0x100c, %r15
  jne 2f
  cmpq $0x100d, -8(%rsp)
  jne 2f
  cmpq $0x100e, -128(%rsp)
  jne 2f
  cmpq %rsp, spin_stack(%rip)
  jne 2f
  movdqa %xmm0, %xmm8
  pxor spin_vector(%rip), %xmm8
  ptest %xmm8, %xmm8
  jne 2f
  movdqa %xmm15, %xmm8
  pxor spin_vector(%rip), %xmm8
  ptest %xmm8, %xmm8
  jne 2f
  lock incq (%rdi)
  cmpq $0, (%rdx)
  je 1b
  jmp 3f
2:
  lock incq (%rsi)
3:
  cld
  movq spin_stack(%rip), %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbp
  popq %rbx
  ret
  .size replpage_test_spin, .-replpage_test_spin
)");

extern "C" void replpage_test_spin(std::atomic<uint64_t>* turns, std::atomic<uint64_t>* errors,
                                   std::atomic<uint64_t>* stop);

namespace {

constexpr uint64_t kLast = ~uint64_t{0};

// A spinning leader, a thread in short sleeps and one that reads from a pipe. Each checks itself.
void checking_victim(Board* board, int pipe_reader) {
  sigset_t blocked;
  sigemptyset(&blocked);
  sigaddset(&blocked, SIGUSR1);
  pthread_sigmask(SIG_BLOCK, &blocked, nullptr);
  start_threads(1, [board](int) {
    while (board->stop == 0) {
      const uint64_t start = now_ns();
      const timespec pause{.tv_sec = 0, .tv_nsec = 3'000'000};
      timespec left{};
      if (::nanosleep(&pause, &left) != 0) ++board->errors;
      if (now_ns() - start < 3 * kMs) ++board->errors;
      ++board->slots[1];
      sigset_t mask;
      pthread_sigmask(SIG_BLOCK, nullptr, &mask);
      if (sigismember(&mask, SIGUSR1) != 1 || sigismember(&mask, SIGUSR2) != 0) ++board->errors;
    }
    ++board->slots[4];
  });
  start_threads(1, [board, pipe_reader](int) {
    uint64_t expected = 0;
    for (;;) {
      uint64_t value = 0;
      const ssize_t got = ::read(pipe_reader, &value, sizeof value);
      if (got == sizeof value && value == kLast) break;
      if (got != sizeof value || value != ++expected) ++board->errors;
      board->slots[2] = expected;
    }
    ++board->slots[4];
  });
  board->ready = 1;
  replpage_test_spin(&board->slots[0], &board->errors, &board->stop);
  sigset_t mask;
  pthread_sigmask(SIG_BLOCK, nullptr, &mask);
  if (sigismember(&mask, SIGUSR1) != 1 || sigismember(&mask, SIGUSR2) != 0) ++board->errors;
  while (board->slots[4] < 2) ::usleep(1000);
  ::_exit(0);
}

struct CheckedVictim {
  CheckedVictim() {
    int fds[2];
    CHECK(::pipe2(fds, O_CLOEXEC) == 0);
    reader = UniqueFd(fds[0]);
    writer = UniqueFd(fds[1]);
    const int read_end = fds[0];
    const int write_end = fds[1];
    victim.emplace([&, read_end, write_end] {
      ::close(write_end);
      checking_victim(board.board, read_end);
    });
    CHECK(wait_until([&] { return board->ready == 1 && board->slots[0] > 0; }));
  }
  void feed() {
    ++sent;
    (void)!::write(writer.get(), &sent, sizeof sent);
  }
  void check() {
    const uint64_t turns = board->slots[0];
    const uint64_t sleeps = board->slots[1];
    CHECK(wait_until([&] { return board->slots[0] > turns && board->slots[1] > sleeps; }));
    CHECK(wait_until([&] { return board->slots[2] == sent; }));
    CHECK_EQUAL(board->errors.load(), 0u);
  }
  void finish() {
    check();
    (void)!::write(writer.get(), &kLast, sizeof kLast);
    board->stop = 1;
    CHECK_EQUAL(victim->wait_end(), 0);
    CHECK_EQUAL(board->errors.load(), 0u);
  }
  SharedBoard board;
  UniqueFd reader, writer;
  std::optional<Victim> victim;
  uint64_t sent = 0;
};

std::vector<pid_t> tids_of(const TraceTree& tree, pid_t pid) {
  std::vector<pid_t> tids;
  for (const auto& [tid, thread] : tree.processes().at(pid).threads) tids.push_back(tid);
  return tids;
}

bool is_in_group_stop(const TraceTree& tree, pid_t pid) {
  return tree.processes().at(pid).threads.at(pid).stop == StopKind::kGroupStop;
}

// Allows what the victim needs, and ends it for everything else.
void install_filter() {
  sock_filter code[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_userfaultfd, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  const sock_fprog program{.len = 4, .filter = code};
  ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
  if (::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0) ::_exit(9);
}

}  // namespace

TEST(injected_calls_give_their_result_and_leave_no_trace) {
  CheckedVictim checked;
  const pid_t pid = checked.victim->pid;
  Recorder recorder;
  TraceTree tree(recorder);
  tree.seize(pid, true);
  std::vector<uint64_t> times;
  for (int i = 0; i < 100; ++i) {
    CHECK(tree.freeze(100'000).frozen);
    for (const pid_t tid : tids_of(tree, pid)) {
      const uint64_t start = now_ns();
      CHECK_EQUAL(tree.inject(tid, SYS_getpid, {}).value_or(-1), pid);
      times.push_back((now_ns() - start) / 1000);
      CHECK_EQUAL(tree.inject(tid, SYS_gettid, {}).value_or(-1), tid);
      CHECK_EQUAL(tree.inject(tid, SYS_close, {9999}).value_or(0), -EBADF);
      std::vector<uint8_t> path(256);
      const auto length = tree.inject(tid, SYS_getcwd, {TraceTree::kDataArgument, 256}, &path);
      char here[256];
      CHECK(::getcwd(here, sizeof here) != nullptr);
      CHECK_EQUAL(length.value_or(-1), static_cast<long>(std::strlen(here) + 1));
      CHECK_EQUAL(std::string(reinterpret_cast<char*>(path.data())), std::string(here));
    }
    tree.thaw();
    checked.feed();
    handle_for(tree, 5);
    if (i % 10 == 0) checked.check();
  }
  CHECK_EQUAL(tree.counters().plain_injections, 0u);
  note("one injected call: median " + std::to_string(median(times)) + " us");
  tree.detach();
  checked.finish();
}

TEST(a_tracer_killed_in_the_middle_of_an_injection_leaves_the_victim_right) {
  CheckedVictim checked;
  const pid_t pid = checked.victim->pid;
  ::srandom(static_cast<unsigned>(now_ns()));
  for (int i = 0; i < 150; ++i) {
    Board* board = checked.board.board;
    board->value = 0;
    TracerProcess tracer([pid, board] {
      Recorder recorder;
      TraceTree tree(recorder);
      tree.seize(pid, true);
      for (;;) {
        if (!tree.freeze(100'000).frozen) continue;
        for (const pid_t tid : tids_of(tree, pid)) {
          board->value = 1;
          for (int k = 0; k < 20; ++k) {
            tree.inject(tid, SYS_getpid, {});
            ++board->slots[3];
          }
        }
        tree.thaw();
        handle_for(tree, 1);
      }
    });
    checked.feed();
    wait_until([&] { return board->value == 1; }, 1000);
    ::usleep(static_cast<useconds_t>(::random() % 1500));
    tracer.kill();
    if (i % 10 == 0) checked.check();
  }
  note(std::to_string(checked.board->slots[3].load()) + " injections by 150 killed tracers");
  checked.finish();
}

TEST(injection_works_when_the_leader_has_ended) {
  SharedBoard board;
  Victim victim([&] {
    start_threads(1, [&](int) {
      ++board->ready;
      sleep_forever();
    });
    ::syscall(SYS_exit, 0);
  });
  CHECK(wait_until([&] { return board->ready == 1 && state_of(victim.pid).starts_with("Z"); }));
  Recorder recorder;
  TraceTree tree(recorder);
  tree.seize(victim.pid, true);
  CHECK(tree.freeze(100'000).frozen);
  const std::vector<pid_t> tids = tids_of(tree, victim.pid);
  CHECK_EQUAL(tids.size(), 1u);
  CHECK_EQUAL(tree.inject(tids.front(), SYS_getpid, {}).value_or(-1), victim.pid);
  CHECK_EQUAL(tree.counters().plain_injections, 0u);
}

// Its stack pointer is where the kernel has mapped no stack below yet.
TEST(injection_makes_room_on_a_stack) {
  SharedBoard board;
  Victim victim([&] {
    std::atomic<uint64_t>* count = &board->count;
    std::istringstream maps(*read_proc("/proc/self/maps"));
    uint64_t start = 0;
    for (std::string line; std::getline(maps, line);) {
      if (line.ends_with("[stack]")) start = std::stoull(line, nullptr, 16);
    }
    asm volatile(
        "movq %0, %%rsp\n"
        "1: lock incq (%1)\n"
        "pause\n"
        "jmp 1b\n" ::"r"(start + 256),
        "r"(count));
  });
  CHECK(wait_until([&] { return board->count > 0; }));
  Recorder recorder;
  TraceTree tree(recorder);
  tree.seize(victim.pid, true);
  for (int i = 0; i < 3; ++i) {
    CHECK(tree.freeze(100'000).frozen);
    CHECK_EQUAL(tree.inject(victim.pid, SYS_getpid, {}).value_or(-1), victim.pid);
    tree.thaw();
    const uint64_t before = board->count;
    CHECK(handle_until(tree, [&] { return board->count > before; }));
  }
}

TEST(injection_works_in_a_group_stop) {
  SharedBoard board;
  Victim victim([&] {
    for (;;) {
      ++board->count;
      ::usleep(100);
    }
  });
  CHECK(wait_until([&] { return board->count > 0; }));
  Recorder recorder;
  TraceTree tree(recorder);
  tree.seize(victim.pid, true);
  ::kill(victim.pid, SIGSTOP);
  CHECK(handle_until(tree, [&] { return is_in_group_stop(tree, victim.pid); }));
  CHECK(tree.freeze(100'000).frozen);
  for (int i = 0; i < 5; ++i) {
    CHECK_EQUAL(tree.inject(victim.pid, SYS_getpid, {}).value_or(-1), victim.pid);
  }
  tree.thaw();
  handle_for(tree, 5);
  const uint64_t before = board->count;
  handle_for(tree, 20);
  CHECK_EQUAL(board->count.load(), before);
  ::kill(victim.pid, SIGCONT);
  CHECK(handle_until(tree, [&] { return board->count > before; }));
}

TEST(a_stop_signal_during_an_injection_is_kept) {
  SharedBoard board;
  Victim victim([&] {
    for (;;) {
      ++board->count;
      ::usleep(100);
    }
  });
  CHECK(wait_until([&] { return board->count > 0; }));
  Recorder recorder;
  TraceTree tree(recorder);
  tree.seize(victim.pid, true);
  for (int i = 0; i < 10; ++i) {
    CHECK(tree.freeze(100'000).frozen);
    ::kill(victim.pid, SIGSTOP);
    CHECK_EQUAL(tree.inject(victim.pid, SYS_getpid, {}).value_or(-1), victim.pid);
    tree.thaw();
    CHECK(handle_until(tree, [&] { return is_in_group_stop(tree, victim.pid); }));
    const uint64_t before = board->count;
    handle_for(tree, 5);
    CHECK_EQUAL(board->count.load(), before);
    ::kill(victim.pid, SIGCONT);
    CHECK(handle_until(tree, [&] { return board->count > before; }));
  }
}

TEST(injection_passes_a_seccomp_filter) {
  SharedBoard board;
  Victim victim([&] {
    install_filter();
    board->ready = 1;
    sleep_forever();
  });
  CHECK(wait_until([&] { return board->ready == 1; }));
  Recorder recorder;
  TraceTree tree(recorder);
  tree.seize(victim.pid, true);
  CHECK(tree.freeze(100'000).frozen);
  const long fd = tree.inject(victim.pid, SYS_userfaultfd, {O_CLOEXEC | 1}).value_or(-1);
  CHECK(fd >= 0);
  CHECK_EQUAL(tree.inject(victim.pid, SYS_close, {static_cast<uint64_t>(fd)}).value_or(-1), 0);
  tree.thaw();
  handle_for(tree, 5);
  CHECK_EQUAL(tree.processes().size(), 1u);
}

TEST(a_thread_killed_during_an_injection_shows_its_own_registers) {
  SharedBoard board;
  Victim victim([&] {
    board->ready = 1;
    replpage_test_spin(&board->slots[0], &board->errors, &board->stop);
  });
  CHECK(wait_until([&] { return board->slots[0] > 0; }));
  Recorder recorder;
  recorder.hold_killed = true;
  TraceTree tree(recorder);
  tree.seize(victim.pid, true);
  CHECK(tree.freeze(100'000).frozen);
  std::thread killer([&] {
    ::usleep(20'000);
    ::kill(victim.pid, SIGKILL);
  });
  // A call that does not end by itself.
  std::vector<uint8_t> forever(16);
  forever[0] = 100;
  const auto result =
      tree.inject(victim.pid, SYS_nanosleep, {TraceTree::kDataArgument, 0}, &forever);
  killer.join();
  CHECK(!result);
  const TracedThread& thread = tree.processes().at(victim.pid).threads.at(victim.pid);
  CHECK(thread.stop == StopKind::kExit);
  user_regs_struct registers{};
  CHECK(::ptrace(PTRACE_GETREGS, victim.pid, 0, &registers) == 0);
  CHECK_EQUAL(registers.rbx, 0x1002u);
  CHECK_EQUAL(registers.r11, 0x1008u);
  CHECK_EQUAL(registers.r15, 0x100cu);
  tree.release_exit(victim.pid);
  CHECK_EQUAL(victim.wait_end(), SIGKILL);
}
