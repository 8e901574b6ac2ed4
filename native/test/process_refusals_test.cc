#include <linux/aio_abi.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/sem.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <ctime>

#include "core/image/kernel_reader.h"
#include "core/image/process_capture.h"
#include "test/state_victim.h"
#include "test/test.h"

namespace replpage::testing {
namespace {

using Ready = std::function<void()>;

[[noreturn]] void pause_for_ever() {
  for (;;) ::pause();
}

// Written by a child or a parent, read by the other.
int* const shared_number = static_cast<int*>(
    ::mmap(nullptr, sizeof(int), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));

// Kinds of what is refused about a child that did `something`.
std::string kinds(void (*something)()) {
  StateVictim victim([something](const Ready& ready) {
    something();
    ready();
    pause_for_ever();
  });
  Refusals refusals;
  find_process_refusals(victim.pid(), refusals);
  std::string text;
  for (const Refusal& refusal : refusals) {
    CHECK_EQUAL(refusal.pid, victim.pid());
    CHECK(!refusal.object.empty() && !refusal.why.empty());
    text += (text.empty() ? "" : ", ") + refusal.kind;
  }
  return text;
}

std::string kinds_of(pid_t pid) {
  Refusals refusals;
  find_process_refusals(pid, refusals);
  return refusals.empty() ? "" : refusals.front().kind;
}

void check_done(long result) {
  if (result < 0) ::_exit(4);
}

void set_filter() {
  sock_filter allow[] = {{.code = BPF_RET | BPF_K, .jt = 0, .jf = 0, .k = SECCOMP_RET_ALLOW}};
  const sock_fprog program{.len = 1, .filter = allow};
  ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
  check_done(::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program));
}

void set_up_aio() {
  aio_context_t context = 0;
  check_done(::syscall(SYS_io_setup, 8, &context));
}

void undo_semaphores() {
  const int id = *shared_number;
  sembuf raise{.sem_num = 0, .sem_op = 1, .sem_flg = SEM_UNDO};
  const int result = ::semop(id, &raise, 1);
  check_done(result);
}

void set_thread_timer() {
  timer_t timer{};
  check_done(::timer_create(CLOCK_THREAD_CPUTIME_ID, nullptr, &timer));
}

void* sleep_apart(void*) {
  check_done(::unshare(CLONE_FS));
  check_done(::unshare(CLONE_FILES));
  pause_for_ever();
}

void* pause_thread(void*) { pause_for_ever(); }

void start_thread_apart() {
  pthread_t thread{};
  check_done(-::pthread_create(&thread, nullptr, sleep_apart, nullptr));
  ::usleep(20'000);
}

TEST(an_ordinary_process_is_not_refused) {
  if (::geteuid() != 0) SKIP("needs root");
  CHECK_EQUAL(kinds([] {}), "");
}

TEST(processes_with_state_that_cannot_be_rebuilt_are_refused) {
  if (::geteuid() != 0) SKIP("needs root");
  CHECK_EQUAL(kinds(set_filter), "seccomp filter");
  CHECK_EQUAL(kinds(set_up_aio), "AIO context");
  CHECK_EQUAL(kinds(set_thread_timer), "timer on a CPU clock");
  CHECK_EQUAL(kinds(start_thread_apart), "own working directory, own descriptor table");
  CHECK_EQUAL(kinds([] { check_done(::unshare(CLONE_NEWUSER)); }), "user namespace");
  CHECK_EQUAL(kinds([] { check_done(::unshare(CLONE_NEWTIME)); }), "time namespace");
  CHECK_EQUAL(kinds([] { check_done(::unshare(CLONE_NEWPID)); }), "PID namespace");
}

TEST(a_process_with_semaphore_operations_to_undo_is_refused) {
  if (::geteuid() != 0) SKIP("needs root");
  if (KernelReader::instance() == nullptr) SKIP("the kernel does not let us read its memory");
  *shared_number = ::semget(IPC_PRIVATE, 1, 0600);
  const std::string found = kinds(undo_semaphores);
  ::semctl(*shared_number, 0, IPC_RMID);
  CHECK_EQUAL(found, "semaphore undo list");
  // Threads share a list, which is empty.
  CHECK_EQUAL(kinds([] {
                pthread_t thread{};
                ::pthread_create(&thread, nullptr, pause_thread, nullptr);
              }),
              "");
}

TEST(what_is_no_process_of_ours_to_protect_is_refused) {
  if (::geteuid() != 0) SKIP("needs root");
  CHECK_EQUAL(kinds_of(::getpid()), "replpage daemon");
  CHECK_EQUAL(kinds_of(0x7fffffff), "");  // no such process: its caller says so
  if (::access("/proc/2/status", F_OK) == 0) CHECK_EQUAL(kinds_of(2), "kernel thread");
}

TEST(a_process_that_another_traces_is_refused) {
  if (::geteuid() != 0) SKIP("needs root");
  StateVictim victim([](const Ready& ready) {
    const pid_t traced = ::fork();
    if (traced == 0) pause_for_ever();
    check_done(::ptrace(PTRACE_SEIZE, traced, nullptr, nullptr));
    *shared_number = traced;
    ready();
    pause_for_ever();
  });
  const pid_t traced = *shared_number;
  CHECK_EQUAL(kinds_of(traced), "traced thread");
  ::kill(traced, SIGKILL);
}

}  // namespace
}  // namespace replpage::testing
