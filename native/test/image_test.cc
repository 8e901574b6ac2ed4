#include <fcntl.h>
#include <grp.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <ctime>

#include "core/base/clock.h"
#include "core/base/procfs.h"
#include "core/image/group_image.h"
#include "core/image/interrupted_call.h"
#include "core/image/kernel_reader.h"
#include "core/image/process_capture.h"
#include "core/memory/memory_map.h"
#include "test/state_victim.h"
#include "test/test.h"

namespace replpage::testing {
namespace {

static_assert(kInjectedData == TraceTree::kDataArgument);

constexpr int kQueuedValue = 4711;
constexpr int kTimerSeconds = 1000;
alignas(16) char altstack_memory[16384];

void on_signal(int, siginfo_t*, void*) {}

void take_signal_state() {
  struct sigaction action {};
  action.sa_sigaction = on_signal;
  action.sa_flags = SA_SIGINFO | SA_RESTART | SA_ONSTACK;
  sigaddset(&action.sa_mask, SIGHUP);
  ::sigaction(SIGUSR1, &action, nullptr);
  ::signal(SIGUSR2, SIG_IGN);
  stack_t stack{.ss_sp = altstack_memory, .ss_flags = 0, .ss_size = sizeof altstack_memory};
  ::sigaltstack(&stack, nullptr);
  sigset_t blocked;
  sigemptyset(&blocked);
  sigaddset(&blocked, SIGRTMIN + 1);
  sigaddset(&blocked, SIGRTMIN + 2);
  ::sigprocmask(SIG_SETMASK, &blocked, nullptr);
  for (int i = 0; i < 40; ++i)
    ::sigqueue(::getpid(), SIGRTMIN + 1, {.sival_int = kQueuedValue + i});
  ::pthread_kill(::pthread_self(), SIGRTMIN + 2);
}

void take_timers() {
  const itimerval interval{.it_interval = {.tv_sec = 7, .tv_usec = 5},
                           .it_value = {.tv_sec = kTimerSeconds, .tv_usec = 0}};
  ::setitimer(ITIMER_REAL, &interval, nullptr);
  sigevent event{};
  event.sigev_notify = SIGEV_SIGNAL;
  event.sigev_signo = SIGRTMIN + 3;
  event.sigev_value.sival_ptr = altstack_memory;
  const itimerspec value{.it_interval = {.tv_sec = 0, .tv_nsec = 99},
                         .it_value = {.tv_sec = kTimerSeconds, .tv_nsec = 0}};
  timer_t first{}, second{};
  ::timer_create(CLOCK_MONOTONIC, &event, &first);
  ::timer_create(CLOCK_REALTIME, &event, &second);
  ::timer_settime(second, 0, &value, nullptr);
}

void take_process_state() {
  ::umask(027);
  if (::chdir("/usr") != 0) ::_exit(3);
  ::prctl(PR_SET_NAME, "state (victim)");
  ::prctl(PR_SET_PDEATHSIG, SIGTERM);
  ::prctl(PR_SET_CHILD_SUBREAPER, 1);
  ::prctl(PR_SET_DUMPABLE, 0);
  ::prctl(PR_SET_TIMERSLACK, 12'345);
  ::prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
  ::setpriority(PRIO_PROCESS, 0, 5);
  const rlimit files{.rlim_cur = 100, .rlim_max = 200};
  ::setrlimit(RLIMIT_NOFILE, &files);
  cpu_set_t cpus;
  CPU_ZERO(&cpus);
  CPU_SET(0, &cpus);
  ::sched_setaffinity(0, sizeof cpus, &cpus);
}

void* sleep_for_ever(void*) {
  ::prctl(PR_SET_NAME, "second");
  ::prctl(PR_SET_PDEATHSIG, SIGWINCH);
  for (;;) ::pause();
}

void victim_with_state(const std::function<void()>& ready) {
  take_signal_state();  // first: a thread that blocked less would take the queued signals
  pthread_t thread{};
  ::pthread_create(&thread, nullptr, sleep_for_ever, nullptr);
  ::usleep(10'000);
  take_timers();
  take_process_state();
  ready();
  const timespec time{.tv_sec = kTimerSeconds, .tv_nsec = 0};
  for (;;) ::clock_nanosleep(CLOCK_MONOTONIC, 0, &time, nullptr);
}

siginfo_t info_of(const SignalInfo& raw) {
  siginfo_t info{};
  std::memcpy(&info, raw.data(), sizeof info);
  return info;
}

void check_signals(const ProcessImage& image) {
  const ThreadImage& leader = image.threads.front();
  CHECK_EQUAL(image.actions.size(), 64u);
  const SignalAction& usr1 = image.actions[SIGUSR1 - 1];
  CHECK_EQUAL(usr1.handler, reinterpret_cast<uint64_t>(&on_signal));
  CHECK((usr1.flags & SA_ONSTACK) != 0 && usr1.restorer != 0);
  CHECK_EQUAL(usr1.mask, uint64_t{1} << (SIGHUP - 1));
  CHECK_EQUAL(image.actions[SIGUSR2 - 1].handler, 1u);
  CHECK_EQUAL(image.actions[SIGWINCH - 1].handler, 0u);
  CHECK_EQUAL(leader.altstack.sp, reinterpret_cast<uint64_t>(altstack_memory));
  CHECK_EQUAL(leader.altstack.size, sizeof altstack_memory);
  CHECK_EQUAL(leader.blocked_signals, uint64_t{3} << SIGRTMIN);
  CHECK_EQUAL(image.pending.size(), 40u);
  CHECK_EQUAL(info_of(image.pending[39]).si_value.sival_int, kQueuedValue + 39);
  CHECK_EQUAL(leader.pending.size(), 1u);
  CHECK_EQUAL(info_of(leader.pending[0]).si_signo, SIGRTMIN + 2);
}

void check_timers(const ProcessImage& image) {
  const IntervalTimer& real = image.interval_timers[ITIMER_REAL];
  CHECK_EQUAL(real.interval_us, 7'000'005u);
  CHECK(real.value_us <= kTimerSeconds * 1'000'000ull);
  CHECK(real.value_us >= (kTimerSeconds - 60) * 1'000'000ull);
  CHECK_EQUAL(image.posix_timers.size(), 2u);
  const PosixTimer& first = image.posix_timers[0];
  const PosixTimer& second = image.posix_timers[1];
  CHECK(first.id < second.id);
  CHECK_EQUAL(first.clock, CLOCK_MONOTONIC);
  CHECK_EQUAL(first.value_ns, 0u);
  CHECK_EQUAL(second.clock, CLOCK_REALTIME);
  CHECK_EQUAL(second.interval_ns, 99u);
  CHECK(second.value_ns >= (kTimerSeconds - 60) * 1'000'000'000ull);
  CHECK_EQUAL(second.signal, SIGRTMIN + 3);
  CHECK_EQUAL(second.signal_value, reinterpret_cast<uint64_t>(altstack_memory));
  CHECK_EQUAL(second.notify, SIGEV_SIGNAL);
}

uint64_t end_of_heap(pid_t pid) {
  const auto maps = read_proc("/proc/" + std::to_string(pid) + "/maps").value();
  const size_t line = maps.rfind('\n', maps.rfind("[heap]")) + 1;
  return std::stoull(maps.substr(maps.find('-', line) + 1), nullptr, 16);
}

void check_process(const ProcessImage& image, pid_t pid) {
  CHECK_EQUAL(image.pid, pid);
  CHECK_EQUAL(image.file_mode_mask, 027u);
  CHECK_EQUAL(image.working_directory, "/usr");
  CHECK_EQUAL(image.root_directory, "/");
  CHECK_EQUAL(image.child_subreaper, true);
  CHECK_EQUAL(image.dumpable, 0);
  CHECK_EQUAL(image.thp_disabled, true);
  CHECK_EQUAL(image.limits[RLIMIT_NOFILE].soft, 100u);
  CHECK_EQUAL(image.limits[RLIMIT_NOFILE].hard, 200u);
  CHECK_EQUAL(image.exit_signal, SIGCHLD);
  CHECK_EQUAL(image.process_group, ::getpgrp());
  CHECK_EQUAL(image.layout.brk, end_of_heap(pid));
  CHECK(image.layout.start_code < image.layout.end_code);
  CHECK(!image.layout.auxv.empty());
}

void check_threads(const ProcessImage& image) {
  CHECK_EQUAL(image.threads.size(), 2u);
  const ThreadImage& leader = image.threads[0];
  const ThreadImage& second = image.threads[1];
  CHECK_EQUAL(leader.name, "state (victim)");
  CHECK_EQUAL(leader.scheduling.nice, 5);
  CHECK_EQUAL(leader.scheduling.timer_slack_ns, 12'345u);
  CHECK_EQUAL(leader.scheduling.affinity[0], 1);
  CHECK_EQUAL(leader.parent_death_signal, SIGTERM);
  CHECK_EQUAL(second.name, "second");
  CHECK_EQUAL(second.parent_death_signal, SIGWINCH);
  for (const ThreadImage& thread : image.threads) {
    CHECK(thread.clear_child_tid != 0);
    CHECK(thread.robust_list != 0);
    CHECK(thread.xstate.size() >= 576);
    CHECK_EQUAL(thread.credentials.uids[1], ::geteuid());
  }
  CHECK(leader.clear_child_tid != second.clear_child_tid);
  // Sleeping in clock_nanosleep and pause.
  CHECK_EQUAL(leader.registers.orig_rax, static_cast<uint64_t>(SYS_clock_nanosleep));
  CHECK_EQUAL(static_cast<int64_t>(leader.registers.rax), kRestartBlock);
  CHECK_EQUAL(second.registers.orig_rax, static_cast<uint64_t>(SYS_pause));
}

TEST(a_process_is_captured_with_all_its_kernel_state_by_injection) {
  if (::geteuid() != 0) SKIP("needs root");
  StateVictim victim(victim_with_state);
  victim.set_kernel_reader(false);
  victim.stop();
  const ProcessImage image = victim.capture(true);
  check_signals(image);
  check_timers(image);
  check_process(image, victim.pid());
  check_threads(image);
}

TEST(a_process_is_captured_with_all_its_kernel_state_without_injection) {
  if (::geteuid() != 0) SKIP("needs root");
  if (KernelReader::instance() == nullptr) SKIP("the kernel does not let us read its memory");
  StateVictim victim(victim_with_state);
  victim.stop();
  const ProcessImage image = victim.capture(false);
  check_signals(image);
  check_timers(image);
  check_process(image, victim.pid());
  check_threads(image);
}

void check_later_captures(bool kernel_reader) {
  if (::geteuid() != 0) SKIP("needs root");
  StateVictim victim(victim_with_state);
  victim.set_kernel_reader(kernel_reader);
  victim.stop();
  const ProcessImage first = victim.capture(true);
  for (int epoch = 0; epoch < 3; ++epoch) {
    victim.go_on();
    ::usleep(2'000);
    victim.stop();
    const ProcessImage later = victim.capture(false, &first, epoch == 2);
    check_signals(later);
    check_timers(later);
    check_process(later, victim.pid());
    check_threads(later);  // the sleep's call number too, though it was interrupted before
  }
}

TEST(a_later_capture_without_injection_knows_the_same) { check_later_captures(true); }
TEST(a_later_capture_without_the_kernel_reader_knows_the_same) { check_later_captures(false); }

// Since Linux 6.3; all are taken for registered before.
bool registrations_can_be_asked_for() {
  constexpr long kGetRegistrations = 1 << 9;
  return (::syscall(SYS_membarrier, 0, 0, 0) & kGetRegistrations) != 0;
}

TEST(the_kernel_reader_and_injection_agree) {
  if (::geteuid() != 0) SKIP("needs root");
  if (KernelReader::instance() == nullptr) SKIP("the kernel does not let us read its memory");
  StateVictim victim(victim_with_state);
  victim.stop();
  ProcessImage read = victim.capture(true);
  victim.set_kernel_reader(false);
  ProcessImage asked = victim.capture(true);
  for (ProcessImage* image : {&read, &asked}) {  // what passes by itself
    image->captured_ns = 0;
    image->change_mark = 0;
    for (ThreadImage& thread : image->threads) thread.change_mark = 0;
    image->interval_timers[ITIMER_REAL].value_us = 0;
    for (PosixTimer& timer : image->posix_timers) timer.value_ns = 0;
    for (PosixTimer& timer : image->posix_timers) timer.overrun = 0;
    if (!registrations_can_be_asked_for()) image->membarrier = 0;
  }
  CHECK(encode(read) == encode(asked));
}

// Goes on with the next change each time it is continued with SIGUSR1.
void victim_that_changes(const std::function<void()>& ready) {
  ::signal(SIGUSR1, [](int) {});
  ready();
  ::pause();
  ::setpriority(PRIO_PROCESS, 0, 3);
  if (::chdir("/usr") != 0) ::_exit(3);
  ::pause();
  const gid_t groups[] = {77};
  if (::setgroups(1, groups) != 0) ::_exit(3);
  ::setpgid(0, 0);
  for (;;) ::pause();
}

TEST(a_change_of_what_changes_seldom_is_seen_at_once) {
  if (::geteuid() != 0) SKIP("needs root");
  if (KernelReader::instance() == nullptr) SKIP("the kernel does not let us read its memory");
  StateVictim victim(victim_that_changes);
  victim.stop();
  ProcessImage image = victim.capture(false);
  const auto next_epoch = [&] {
    victim.go_on();
    ::kill(victim.pid(), SIGUSR1);
    victim.tree().wait_events(now_ns() + 50'000'000);
    victim.stop();
    const ProcessImage previous = std::move(image);
    image = victim.capture(false, &previous, false);
  };
  next_epoch();
  CHECK_EQUAL(image.threads[0].scheduling.nice, 3);
  CHECK_EQUAL(image.working_directory, "/usr");
  next_epoch();
  CHECK_EQUAL(image.threads[0].credentials.groups.size(), 1u);
  CHECK_EQUAL(image.process_group, victim.pid());
}

void victim_with_other_actions(const std::function<void()>& ready) {
  ::signal(SIGUSR1, [](int) {});
  ::signal(SIGUSR2, [](int) {});
  ::signal(SIGTERM, [](int) {});
  ready();
  ::pause();
  struct sigaction action {};
  action.sa_handler = [](int) {};
  action.sa_flags = SA_RESTART;
  ::sigaddset(&action.sa_mask, SIGALRM);
  ::sigaction(SIGHUP, &action, nullptr);
  ::sigaction(SIGUSR2, &action, nullptr);
  ::signal(SIGTERM, SIG_DFL);
  ::signal(SIGINT, SIG_IGN);
  action.sa_handler = SIG_DFL;
  action.sa_flags = SA_NOCLDWAIT;
  ::sigaction(SIGCHLD, &action, nullptr);
  for (;;) ::pause();
}

// Later only the actions of handled signals are asked for.
TEST(actions_that_have_changed_are_asked_for) {
  StateVictim victim(victim_with_other_actions);
  victim.set_kernel_reader(false);
  victim.stop();
  const ProcessImage before = victim.capture(true);
  ::kill(victim.pid(), SIGUSR1);
  ProcessImage anew;
  for (int i = 0; i < 100 * testing::slowness(); ++i) {
    victim.go_on();
    victim.tree().wait_events(now_ns() + 50'000'000);
    victim.stop();
    anew = victim.capture(true);
    if (anew.actions[SIGCHLD - 1].flags & SA_NOCLDWAIT) break;
  }
  const ProcessImage after = victim.capture(true, &before);
  for (size_t i = 0; i < anew.actions.size(); ++i) {
    const SignalAction& known = after.actions[i];
    const SignalAction& asked = anew.actions[i];
    CHECK(known.handler == asked.handler);
    if (asked.handler <= 1 && i != SIGCHLD - 1) continue;
    CHECK(known.flags == asked.flags && known.mask == asked.mask);
  }
  CHECK(anew.actions[SIGHUP - 1].handler > 1);
  CHECK(anew.actions[SIGTERM - 1].handler == 0 && before.actions[SIGTERM - 1].handler > 1);
  CHECK(after.actions[SIGCHLD - 1].flags & SA_NOCLDWAIT);
}

// Many mappings, so that the kernel's tree of them has several levels.
void victim_with_many_mappings(const std::function<void()>& ready) {
  constexpr size_t kPages = 3000;
  auto* area = static_cast<uint8_t*>(::mmap(nullptr, kPages * kPageSize, PROT_READ | PROT_WRITE,
                                            MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  const int advices[] = {MADV_DONTFORK, MADV_DONTDUMP, MADV_WIPEONFORK, MADV_RANDOM,
                         MADV_NOHUGEPAGE};
  for (size_t page = 0; page < kPages; ++page) {
    uint8_t* at = area + page * kPageSize;
    if (page % 7 == 0) ::munmap(at, kPageSize);
    if (page % 7 == 3) ::madvise(at, kPageSize, advices[page % std::size(advices)]);
    if (page % 7 == 5) ::mlock2(at, kPageSize, page % 2 == 0 ? MLOCK_ONFAULT : 0);
  }
  const int key = ::pkey_alloc(0, 0);
  if (key > 0) ::pkey_mprotect(area + kPageSize, kPageSize, PROT_READ, key);
  ready();
  for (;;) ::pause();
}

TEST(the_kernel_reader_and_smaps_agree_on_mappings) {
  if (KernelReader::instance() == nullptr) SKIP("the kernel does not let us read its memory");
  StateVictim victim(victim_with_many_mappings);
  victim.stop();
  const auto bits = KernelReader::instance()->read_mappings(victim.pid());
  if (!bits) SKIP("the kernel keeps its mappings in another way");
  CHECK(bits->size() > 1000);
  auto read = read_memory_map(victim.pid(), *bits, true);
  const auto told = read_memory_map(victim.pid(), {}, true, nullptr);
  CHECK(read && told);
  const bool tells_lock_on_fault =
      std::any_of(told->begin(), told->end(),
                  [](const MappingImage& mapping) { return mapping.flags & kLockOnFault; });
  for (MappingImage& mapping : *read) {  // before Linux 6.9 smaps does not
    if (!tells_lock_on_fault) mapping.flags &= ~static_cast<uint32_t>(kLockOnFault);
  }
  CHECK(*read == *told);
  const std::vector<VmBits> fewer(bits->begin() + 1, bits->end());
  CHECK(!read_memory_map(victim.pid(), fewer, false));
}

TEST(an_interrupted_sleep_keeps_its_number_without_a_previous_image) {
  if (::geteuid() != 0) SKIP("needs root");
  StateVictim victim(victim_with_state);
  victim.stop();
  victim.go_on();
  ::usleep(2'000);
  victim.stop();
  check_threads(victim.capture(true));
}

TEST(capture_of_a_thread_is_quick) {
  if (::geteuid() != 0) SKIP("needs root");
  StateVictim victim(victim_with_state);
  victim.stop();
  const ProcessImage first = victim.capture(true);
  const ThreadCaptureInput input{.host_tid = victim.pid(),
                                 .previous = &first.threads[0],
                                 .slow_state = false,
                                 .inject = {},
                                 .kernel_reader = true};
  const auto quickest = [](const auto& capture) {
    uint64_t best = UINT64_MAX;
    for (int round = 0; round < 200; ++round) {
      const uint64_t start = now_ns();
      capture();
      best = std::min(best, now_ns() - start);
    }
    return std::to_string(best / 1000) + " us";
  };
  note("thread: " + quickest([&] { CHECK(capture_thread(input).has_value()); }));
  note("process of 2 threads and 2 timers: " +
       quickest([&] { victim.capture(false, &first, false); }));
  note("with slow state: " + quickest([&] { victim.capture(false, &first, true); }));
  victim.set_kernel_reader(false);
  note("without the kernel reader: " + quickest([&] { victim.capture(false, &first, false); }));
}

}  // namespace
}  // namespace replpage::testing
