#include <fcntl.h>
#include <linux/capability.h>
#include <linux/securebits.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <unistd.h>

#include <array>
#include <cstring>
#include <ctime>
#include <stdexcept>

#include "core/restore/process_state.h"
#include "core/restore/thread_state.h"
#include "test/state_victim.h"
#include "test/test.h"

namespace replpage::testing {
namespace {

// What the stub does, in this very process.
void run_here(const SyscallBatch& batch) {
  std::vector<uint8_t> data = batch.data();
  std::vector<long> results;
  for (const BatchOperation& operation : batch.operations()) {
    std::array<uint64_t, 6> values{};
    for (size_t i = 0; i < values.size(); ++i) {
      const BatchArgument& argument = operation.arguments[i];
      const auto address = reinterpret_cast<uint64_t>(data.data()) + argument.value;
      switch (argument.kind) {
        case BatchArgument::Kind::kValue:
          values[i] = argument.value;
          break;
        case BatchArgument::Kind::kDataAddress:
          values[i] = address;
          break;
        case BatchArgument::Kind::kLoad32:
          values[i] = *reinterpret_cast<const uint32_t*>(address);
          break;
        case BatchArgument::Kind::kResultOf:
          values[i] = static_cast<uint64_t>(results[argument.value]);
          break;
      }
    }
    // The executable of this process is mapped and cannot change.
    if (operation.number == SYS_prctl && values[0] == PR_SET_MM) {
      reinterpret_cast<prctl_mm_map*>(values[2])->exe_fd = static_cast<uint32_t>(-1);
    }
    long result = ::syscall(operation.number, values[0], values[1], values[2], values[3], values[4],
                            values[5]);
    if (result == -1) result = -errno;
    results.push_back(result);
    if (result < 0 && operation.must_succeed) {
      throw std::runtime_error(std::string(operation.label) + ": " + std::strerror(-result));
    }
  }
}

// A descriptor of a directory that is no more, as the keeper takes it from the primary.
int open_removed_directory() {
  char path[] = "/tmp/replpage-removed-XXXXXX";
  if (::mkdtemp(path) == nullptr) return -1;
  const int fd = ::open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
  ::rmdir(path);
  return fd;
}

// A child that takes on the state of `wanted`, as far as this very address space allows: its rseq
// area is registered already. Signals are blocked as in the stub.
void become(ProcessImage wanted) {
  wanted.pid = ::getpid();
  wanted.threads[0].tid = wanted.pid;
  wanted.threads[0].rseq = {};
  sigset_t all;
  sigfillset(&all);
  ::sigprocmask(SIG_SETMASK, &all, nullptr);
  SyscallBatch batch;
  add_build_state(wanted, batch);
  const bool removed = is_removed(wanted.working_directory);
  add_process_state(wanted, removed ? open_removed_directory() : -1, batch);
  add_thread_state(wanted, wanted.threads[0], SetScheduling::kByItself, batch);
  add_final_state(wanted, batch);
  run_here(batch);
}

[[noreturn]] void pause_for_ever() {
  for (;;) ::pause();
}

// State of a plain child, as a start for tests that change some of it.
ProcessImage plain_image() {
  StateVictim victim([](const auto& ready) {
    ready();
    pause_for_ever();
  });
  victim.stop();
  return victim.capture(true);
}

ProcessImage restored(const ProcessImage& wanted) {
  StateVictim victim([&wanted](const auto& ready) {
    become(wanted);
    ready();
    pause_for_ever();
  });
  apply_outer_state(victim.pid(), wanted);
  victim.stop();
  return victim.capture(true);
}

SignalInfo queued_signal(int32_t signal, int32_t code, int32_t value) {
  siginfo_t info{};
  info.si_signo = signal;
  info.si_code = code;
  info.si_pid = 77;
  info.si_uid = 5;
  info.si_value.sival_int = value;
  SignalInfo raw{};
  std::memcpy(raw.data(), &info, sizeof info);
  return raw;
}

constexpr uint64_t bit(int number) { return uint64_t{1} << number; }

TEST(a_process_takes_on_the_signal_state_of_an_image) {
  if (::geteuid() != 0) SKIP("needs root");
  ProcessImage wanted = plain_image();
  wanted.actions[SIGUSR1 - 1] = {0x1234, 0x14000004, 0x5678, bit(3)};
  wanted.actions[SIGUSR2 - 1] = {.handler = 1};
  for (int i = 0; i < 20; ++i) wanted.pending.push_back(queued_signal(SIGRTMIN, SI_QUEUE, i));
  wanted.pending.push_back(queued_signal(SIGUSR2, SI_USER, 0));  // ignored, but blocked when sent
  wanted.threads[0].pending = {queued_signal(SIGSEGV, 1, 9),
                               queued_signal(SIGRTMIN + 4, SI_TKILL, 0)};
  wanted.threads[0].altstack = {.sp = 0x10000, .size = 65536, .flags = 0};
  wanted.threads[0].parent_death_signal = SIGWINCH;
  const ProcessImage found = restored(wanted);
  CHECK(found.actions == wanted.actions);
  CHECK(found.pending == wanted.pending);
  CHECK(found.threads[0].pending == wanted.threads[0].pending);
  CHECK_EQUAL(found.threads[0].altstack.sp, 0x10000u);
  CHECK_EQUAL(found.threads[0].parent_death_signal, SIGWINCH);
}

TEST(a_process_takes_on_the_timers_of_an_image) {
  if (::geteuid() != 0) SKIP("needs root");
  ProcessImage wanted = plain_image();
  wanted.interval_timers[ITIMER_REAL] = {.value_us = 500'000'000, .interval_us = 3'000'001};
  wanted.posix_timers = {
      {.id = 3, .clock = CLOCK_MONOTONIC, .signal = SIGRTMIN, .signal_value = 42},
      {.id = 7,
       .clock = CLOCK_BOOTTIME,
       .notify = SIGEV_NONE,
       .value_ns = 900'000'000'000,
       .interval_ns = 17}};
  const ProcessImage found = restored(wanted);
  CHECK_EQUAL(found.interval_timers[ITIMER_REAL].interval_us, 3'000'001u);
  CHECK(found.interval_timers[ITIMER_REAL].value_us > 400'000'000);
  CHECK_EQUAL(found.posix_timers.size(), 2u);
  CHECK_EQUAL(found.posix_timers[0].id, 3);
  CHECK_EQUAL(found.posix_timers[0].signal_value, 42u);
  CHECK_EQUAL(found.posix_timers[0].value_ns, 0u);
  CHECK_EQUAL(found.posix_timers[1].id, 7);
  CHECK_EQUAL(found.posix_timers[1].clock, CLOCK_BOOTTIME);
  CHECK_EQUAL(found.posix_timers[1].notify, SIGEV_NONE);
  CHECK_EQUAL(found.posix_timers[1].interval_ns, 17u);
  CHECK(found.posix_timers[1].value_ns > 800'000'000'000);
}

TEST(a_process_takes_on_the_other_state_of_an_image) {
  if (::geteuid() != 0) SKIP("needs root");
  ProcessImage wanted = plain_image();
  wanted.working_directory = "/usr/share (deleted)";
  wanted.file_mode_mask = 0123;
  wanted.layout.brk += 0x1000;
  wanted.layout.start_stack -= 64;
  wanted.layout.auxv = {6, 4096, 0, 0};
  wanted.child_subreaper = true;
  wanted.thp_disabled = true;
  wanted.dumpable = 0;
  wanted.session = 1;
  wanted.oom_score_adj = 123;
  wanted.core_dump_filter = 0x21;
  wanted.limits[RLIMIT_NOFILE] = {.soft = 55, .hard = 66};
  wanted.threads[0].name = "a (b) c";
  wanted.threads[0].scheduling.nice = 7;
  wanted.threads[0].scheduling.io_priority = 3 << 13;  // idle class
  wanted.threads[0].scheduling.timer_slack_ns = 77;
  wanted.threads[0].clear_child_tid = 0x5550;
  wanted.membarrier = 16;  // MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED
  const ProcessImage found = restored(wanted);
  CHECK(found.working_directory.ends_with(" (deleted)"));
  CHECK_EQUAL(found.file_mode_mask, 0123u);
  CHECK_EQUAL(found.layout.start_stack, wanted.layout.start_stack);
  CHECK_EQUAL(found.layout.brk, wanted.layout.brk);
  CHECK_EQUAL(found.layout.auxv[1], 4096u);
  CHECK_EQUAL(found.child_subreaper, true);
  CHECK_EQUAL(found.thp_disabled, true);
  CHECK_EQUAL(found.dumpable, 0);
  CHECK_EQUAL(found.oom_score_adj, 123);
  CHECK_EQUAL(found.core_dump_filter, 0x21u);
  CHECK_EQUAL(found.limits[RLIMIT_NOFILE].hard, 66u);
  // Kernels before 6.3 do not tell which registrations there are: then all are taken for granted.
  const bool told = ::syscall(SYS_membarrier, 1 << 9, 0, 0) >= 0;
  CHECK_EQUAL(found.membarrier & (told ? ~0u : 16u), 16u);
  const ThreadImage& thread = found.threads[0];
  CHECK_EQUAL(thread.name, "a (b) c");
  CHECK_EQUAL(thread.scheduling.nice, 7);
  CHECK_EQUAL(thread.scheduling.io_priority, 3 << 13);
  CHECK_EQUAL(thread.scheduling.timer_slack_ns, 77u);
  CHECK_EQUAL(thread.clear_child_tid, 0x5550u);
  CHECK_EQUAL(thread.robust_list, wanted.threads[0].robust_list);
}

TEST(a_thread_takes_on_the_rights_of_an_image) {
  if (::geteuid() != 0) SKIP("needs root");
  ProcessImage wanted = plain_image();
  Credentials& rights = wanted.threads[0].credentials;
  rights.uids = {1001, 1002, 1003, 1002};
  rights.gids = {2001, 2002, 2003, 2001};
  rights.groups = {4, 24, 3000};
  rights.cap_permitted = bit(CAP_NET_BIND_SERVICE) | bit(CAP_KILL);
  rights.cap_effective = bit(CAP_KILL);
  rights.cap_inheritable = bit(CAP_NET_BIND_SERVICE);
  rights.cap_ambient = bit(CAP_NET_BIND_SERVICE);
  rights.cap_bounding = bit(CAP_NET_BIND_SERVICE) | bit(CAP_CHOWN);
  rights.securebits = SECBIT_NOROOT | SECBIT_NOROOT_LOCKED;
  rights.no_new_privs = true;
  wanted.threads[0].parent_death_signal = SIGUSR2;
  wanted.dumpable = 1;
  const ProcessImage found = restored(wanted);
  const Credentials& got = found.threads[0].credentials;
  CHECK(got.uids == rights.uids);
  CHECK(got.gids == rights.gids);
  CHECK(got.groups == rights.groups);
  CHECK_EQUAL(got.cap_permitted, rights.cap_permitted);
  CHECK_EQUAL(got.cap_effective, rights.cap_effective);
  CHECK_EQUAL(got.cap_inheritable, rights.cap_inheritable);
  CHECK_EQUAL(got.cap_ambient, rights.cap_ambient);
  CHECK_EQUAL(got.cap_bounding, rights.cap_bounding);
  CHECK_EQUAL(got.securebits, rights.securebits);
  CHECK_EQUAL(got.no_new_privs, true);
  CHECK_EQUAL(found.threads[0].parent_death_signal, SIGUSR2);
  CHECK_EQUAL(found.dumpable, 1);
}

}  // namespace
}  // namespace replpage::testing
