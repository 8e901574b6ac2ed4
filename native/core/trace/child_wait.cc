#include "core/trace/child_wait.h"

#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>

#include <mutex>

#include "core/base/clock.h"
#include "core/base/sys_error.h"

// long replpage_wait_window(volatile int* kicked, int type, pid_t id, siginfo_t* info, int options)
// Returns 0, -errno, or -EINTR when *kicked was set before the kernel could wait.
asm(R"(
  .text
  .p2align 4
  .globl replpage_wait_window
  .hidden replpage_wait_window
  .type replpage_wait_window, @function
replpage_wait_window:
  movq %rdi, %r9
  movq %rsi, %rdi
  movq %rdx, %rsi
  movq %rcx, %rdx
  movq %r8, %r10
  xorl %r8d, %r8d
  .globl replpage_wait_window_begin
  .hidden replpage_wait_window_begin
replpage_wait_window_begin:
  cmpl $0, (%r9)
  jne replpage_wait_window_kicked
  movl $247, %eax
  syscall
  .globl replpage_wait_window_end
  .hidden replpage_wait_window_end
replpage_wait_window_end:
  ret
  .globl replpage_wait_window_kicked
  .hidden replpage_wait_window_kicked
replpage_wait_window_kicked:
  movq $-4, %rax
  ret
  .size replpage_wait_window, .-replpage_wait_window
)");

// long replpage_seize_window(volatile int* kicked, pid_t tid, long options)
// PTRACE_SEIZE waits for an execve of the process to end, and the kernel restarts that wait after
// a signal. The same trick ends it.
asm(R"(
  .text
  .p2align 4
  .globl replpage_seize_window
  .hidden replpage_seize_window
  .type replpage_seize_window, @function
replpage_seize_window:
  movq %rdi, %r9
  movq %rdx, %r10
  xorl %edx, %edx
  movl $0x4206, %edi
  .globl replpage_seize_window_begin
  .hidden replpage_seize_window_begin
replpage_seize_window_begin:
  cmpl $0, (%r9)
  jne replpage_wait_window_kicked
  movl $101, %eax
  syscall
  .globl replpage_seize_window_end
  .hidden replpage_seize_window_end
replpage_seize_window_end:
  ret
  .size replpage_seize_window, .-replpage_seize_window
)");

extern "C" {
long replpage_wait_window(volatile int* kicked, int type, pid_t id, siginfo_t* info, int options);
long replpage_seize_window(volatile int* kicked, pid_t tid, long options);
extern const char replpage_seize_window_begin[];
extern const char replpage_seize_window_end[];
extern const char replpage_wait_window_begin[];
extern const char replpage_wait_window_end[];
extern const char replpage_wait_window_kicked[];
}

namespace replpage {
namespace {

static_assert(SYS_waitid == 247 && SYS_ptrace == 101 && PTRACE_SEIZE == 0x4206 && EINTR == 4);

constexpr int kPeek = __WALL | __WNOTHREAD | WNOWAIT | WEXITED | WSTOPPED;
constexpr int kTake = __WALL | __WNOTHREAD | WEXITED | WSTOPPED | WNOHANG;
constexpr int kPeekContinued = __WALL | __WNOTHREAD | WNOWAIT | WCONTINUED | WNOHANG;

// initial-exec: no allocation at first use, so that the handler may write it.
[[gnu::tls_model("initial-exec")]] thread_local volatile int kicked = 0;

void on_wake_signal(int, siginfo_t*, void* context) {
  kicked = 1;
  auto* machine = &static_cast<ucontext_t*>(context)->uc_mcontext;
  const auto at = static_cast<uintptr_t>(machine->gregs[REG_RIP]);
  const auto within = [at](const char* begin, const char* end) {
    // At the end the call has been made and has its result: leave that alone.
    return at >= reinterpret_cast<uintptr_t>(begin) && at < reinterpret_cast<uintptr_t>(end);
  };
  if (within(replpage_wait_window_begin, replpage_wait_window_end) ||
      within(replpage_seize_window_begin, replpage_seize_window_end)) {
    machine->gregs[REG_RIP] = reinterpret_cast<greg_t>(replpage_wait_window_kicked);
  }
}

// One with the default action becomes ours for the process's lifetime. Not a real-time signal:
// those are refused when the user's processes together have too many queued (RLIMIT_SIGPENDING),
// and a wake-up would be lost; the others are always marked as pending (__send_signal_locked in
// kernel/signal.c). The kernel raises none of these on its own.
int claim_signal() {
  struct sigaction action {};
  action.sa_sigaction = on_wake_signal;
  action.sa_flags = SA_SIGINFO;  // without SA_RESTART: an interrupted wait returns
  sigfillset(&action.sa_mask);
  for (const int signal : {SIGSTKFLT, SIGPWR, SIGURG}) {
    struct sigaction old {};
    if (::sigaction(signal, nullptr, &old) != 0) continue;
    if (old.sa_handler != SIG_DFL) continue;
    if (::sigaction(signal, &action, nullptr) == 0) return signal;
  }
  throw SysError("claim a wake signal", EBUSY);
}

int wake_signal() {
  static const int signal = claim_signal();
  return signal;
}

// Read by wake(), which may run inside a signal handler where a static's guard must not be taken.
std::atomic<int> claimed_signal{0};

Peeked outcome(long result, const siginfo_t& info, ChildEvent& event) {
  if (result == -EINTR) return Peeked::kInterrupted;
  if (result < 0) return Peeked::kNoChild;
  if (info.si_pid == 0) return Peeked::kNothing;
  event = {.tid = info.si_pid, .code = info.si_code, .status = info.si_status};
  return Peeked::kEvent;
}

Peeked wait_on(int type, pid_t id, ChildEvent& event, int options) {
  siginfo_t info{};
  return outcome(replpage_wait_window(&kicked, type, id, &info, options), info, event);
}

Peeked look_at(int type, pid_t id, ChildEvent& event, int options) {
  siginfo_t info{};
  const long result = ::syscall(SYS_waitid, type, id, &info, options, nullptr);
  return outcome(result < 0 ? -errno : result, info, event);
}

}  // namespace

ChildWait::~ChildWait() {
  unbind();
  drop_timer();
}

void ChildWait::bind() {
  if (waiter_.load() == ::gettid()) return;
  unbind();
  claimed_signal = wake_signal();
  kicked = 0;
  sigset_t mask;
  sigfillset(&mask);
  for (const int sync : {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP, SIGABRT, SIGSYS}) {
    sigdelset(&mask, sync);
  }
  sigdelset(&mask, claimed_signal);
  ::pthread_sigmask(SIG_SETMASK, &mask, &old_mask_);
  make_timer();
  waiter_ = ::gettid();
}

// Kept from one bind() to the next: each takes a place among the user's queued signals, which may
// be taken by then.
void ChildWait::make_timer() {
  if (timer_thread_ == ::gettid()) return;
  drop_timer();
  sigevent notice{};
  notice.sigev_notify = SIGEV_THREAD_ID;
  notice.sigev_signo = claimed_signal;
  notice._sigev_un._tid = ::gettid();
  if (::timer_create(CLOCK_MONOTONIC, &notice, &timer_) != 0) {
    const int error = errno;
    ::pthread_sigmask(SIG_SETMASK, &old_mask_, nullptr);
    throw SysError("make the tracer's timer", error);
  }
  timer_thread_ = ::gettid();
}

void ChildWait::drop_timer() noexcept {
  if (timer_thread_ != 0) ::timer_delete(timer_);
  timer_thread_ = 0;
  armed_ns_ = 0;
}

void ChildWait::unbind() noexcept {
  const pid_t waiter = waiter_.exchange(0);
  arm(0);
  if (waiter == ::gettid()) ::pthread_sigmask(SIG_SETMASK, &old_mask_, nullptr);
}

void ChildWait::wake() noexcept {
  woken_ = true;
  const pid_t waiter = waiter_;
  if (waiter == 0) return;  // bind() comes before the first look at woken_
  const int saved = errno;
  ::syscall(SYS_tgkill, ::getpid(), waiter, claimed_signal.load());
  errno = saved;
}

void ChildWait::begin() noexcept { kicked = 0; }

uint64_t ChildWait::arm(uint64_t deadline_ns) noexcept {
  const uint64_t before = armed_ns_;
  if (timer_thread_ == 0 || deadline_ns == before) return before;
  itimerspec when{};
  when.it_value.tv_sec = static_cast<time_t>(deadline_ns / 1'000'000'000u);
  when.it_value.tv_nsec = static_cast<long>(deadline_ns % 1'000'000'000u);
  ::timer_settime(timer_, TIMER_ABSTIME, &when, nullptr);
  armed_ns_ = deadline_ns;
  return before;
}

Peeked ChildWait::peek_any(ChildEvent& event, Blocking blocking) noexcept {
  if (blocking == Blocking::kNo) return look_at(P_ALL, 0, event, kPeek | WNOHANG);
  return wait_on(P_ALL, 0, event, kPeek);
}

Peeked ChildWait::peek(pid_t tid, ChildEvent& event, Blocking blocking) noexcept {
  if (blocking == Blocking::kNo) return look_at(P_PID, tid, event, kPeek | WNOHANG);
  return wait_on(P_PID, tid, event, kPeek);
}

long ChildWait::seize(pid_t tid, long options, uint64_t deadline_ns) noexcept {
  const uint64_t outer = arm(deadline_ns);
  long result = -EINTR;
  while (result == -EINTR && now_ns() < deadline_ns) {
    begin();
    result = replpage_seize_window(&kicked, tid, options);
  }
  arm(outer);
  return result;
}

Peeked ChildWait::consume(pid_t tid, ChildEvent& event) noexcept {
  return look_at(P_PID, tid, event, kTake);
}

bool ChildWait::is_continued(pid_t pid) noexcept {
  ChildEvent event;
  const Peeked peeked = look_at(P_PID, pid, event, kPeekContinued);
  return peeked == Peeked::kEvent && event.code == CLD_CONTINUED;
}

void quieten_stop_notices() noexcept {
  struct sigaction action {};
  if (::sigaction(SIGCHLD, nullptr, &action) != 0) return;
  const bool handled = (action.sa_flags & SA_SIGINFO) != 0 ||
                       (action.sa_handler != SIG_DFL && action.sa_handler != SIG_IGN);
  if (!handled || (action.sa_flags & SA_NOCLDSTOP) != 0) return;
  action.sa_flags |= SA_NOCLDSTOP;
  ::sigaction(SIGCHLD, &action, nullptr);
}

}  // namespace replpage
