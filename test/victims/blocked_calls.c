// One thread per blocking system call. None may see an error it would not have seen undisturbed
// (signal(7) lists those calls that fail with EINTR after any stop; these are repeated), none may
// return early, none may hang, and what is read comes in order.
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <sys/wait.h>

#include "victim.h"

enum { kWaitMs = 150, kPipeBulk = 256 * 1024, kSystemVKeys = 0x72 };
static const uint64_t kWaitNs = kWaitMs * 1000000ull;

static int quiet_pipe[2];  // nothing is ever written to it
static int number_pipe[2];
static int bulk_pipe[2];
static int pair[2];
static int read_pair[2];
static int counter;        // eventfd
static int alarm_signals;  // signalfd
static int changes;        // inotify
static char changed[PATH_MAX];
static int messages;    // System V message queue
static int semaphores;  // System V semaphores
static int flocked[2];  // two open files of one file
static int listener;
static struct sockaddr_un listener_address;
static socklen_t listener_length;
static _Atomic uint32_t futex_word;
static _Atomic uint32_t never_woken;
static _Atomic int suspended_tid;
static _Atomic uint32_t handled;

static void check_late(const char* what, uint64_t start, uint64_t wait_ns) {
  uint64_t took = victim_now_ns() - start;
  VICTIM_CHECK(took + 1000000 >= wait_ns, "%s came back after %lu of %lu us", what, took / 1000,
               wait_ns / 1000);
}

static void do_nanosleep(void) {
  struct timespec wait = {0, (long)kWaitNs};
  uint64_t start = victim_now_ns();
  VICTIM_CHECK(nanosleep(&wait, NULL) == 0, "nanosleep");
  check_late("nanosleep", start, kWaitNs);
}

static void do_absolute_sleep(void) {
  uint64_t start = victim_now_ns();
  uint64_t until = start + kWaitNs;
  struct timespec at = {(time_t)(until / 1000000000u), (long)(until % 1000000000u)};
  int error = clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, NULL);
  VICTIM_CHECK(error == 0, "clock_nanosleep: %s", strerror(error));
  check_late("clock_nanosleep", start, kWaitNs);
}

static void do_poll(void) {
  struct pollfd entry = {.fd = quiet_pipe[0], .events = POLLIN};
  uint64_t start = victim_now_ns();
  int got = poll(&entry, 1, kWaitMs);
  VICTIM_CHECK(got == 0, "poll gave %d", got);
  check_late("poll", start, kWaitNs);
}

static void do_ppoll(void) {
  struct pollfd entry = {.fd = quiet_pipe[0], .events = POLLIN};
  struct timespec wait = {0, (long)kWaitNs};
  uint64_t start = victim_now_ns();
  int got = ppoll(&entry, 1, &wait, NULL);
  VICTIM_CHECK(got == 0, "ppoll gave %d", got);
  check_late("ppoll", start, kWaitNs);
}

static void do_select(void) {
  fd_set set;
  FD_ZERO(&set);
  FD_SET(quiet_pipe[0], &set);
  struct timeval wait = {0, kWaitMs * 1000};
  uint64_t start = victim_now_ns();
  int got = select(quiet_pipe[0] + 1, &set, NULL, NULL, &wait);
  VICTIM_CHECK(got == 0, "select gave %d", got);
  check_late("select", start, kWaitNs);
}

static void do_futex_timeout(void) {
  struct timespec wait = {0, (long)kWaitNs};
  uint64_t start = victim_now_ns();
  long got = syscall(SYS_futex, &never_woken, FUTEX_WAIT_PRIVATE, 0, &wait, NULL, 0);
  VICTIM_CHECK(got == -1 && errno == ETIMEDOUT, "futex with a time-out gave %ld", got);
  check_late("futex with a time-out", start, kWaitNs);
}

static void do_futex_until(void) {
  uint64_t start = victim_now_ns();
  uint64_t until = start + kWaitNs;
  struct timespec at = {(time_t)(until / 1000000000u), (long)(until % 1000000000u)};
  long got = syscall(SYS_futex, &never_woken, FUTEX_WAIT_BITSET_PRIVATE, 0, &at, NULL,
                     FUTEX_BITSET_MATCH_ANY);
  VICTIM_CHECK(got == -1 && errno == ETIMEDOUT, "futex until a time gave %ld", got);
  check_late("futex until a time", start, kWaitNs);
}

static void do_futex_woken(void) {
  uint32_t seen = atomic_load(&futex_word);
  while (atomic_load(&futex_word) == seen) {
    long got = syscall(SYS_futex, &futex_word, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
    VICTIM_CHECK(got == 0 || errno == EAGAIN, "futex gave %ld", got);
  }
}

static void do_read(void) {
  static uint64_t expected;
  uint64_t number = 0;
  ssize_t got = read(number_pipe[0], &number, sizeof number);
  VICTIM_CHECK(got == sizeof number, "read from a pipe gave %zd", got);
  VICTIM_CHECK(number == expected, "the pipe gave %lu, not %lu", number, expected);
  expected++;
}

static void do_read_pair(void) {
  static uint64_t expected;
  uint64_t number = 0;
  ssize_t got = read(read_pair[0], &number, sizeof number);
  VICTIM_CHECK(got == sizeof number && number == expected, "read of a pair gave %zd, %lu, not %lu",
               got, number, expected);
  expected++;
}

static void do_read_eventfd(void) {
  uint64_t number = 0;
  ssize_t got = read(counter, &number, sizeof number);
  VICTIM_CHECK(got == sizeof number && number == 1, "eventfd gave %zd, %lu", got, number);
}

static void do_read_timerfd(void) {
  static int timer = -1;
  if (timer < 0) {
    timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC);
  }
  struct itimerspec once = {.it_value = {0, (long)kWaitNs}};
  uint64_t start = victim_now_ns();
  VICTIM_CHECK(timerfd_settime(timer, 0, &once, NULL) == 0, "timerfd_settime");
  uint64_t ticks = 0;
  ssize_t got = read(timer, &ticks, sizeof ticks);
  VICTIM_CHECK(got == sizeof ticks && ticks == 1, "timerfd gave %zd, %lu", got, ticks);
  check_late("read of a timerfd", start, kWaitNs);
}

static void do_read_signalfd(void) {
  static int expected;
  struct signalfd_siginfo info;
  ssize_t got = read(alarm_signals, &info, sizeof info);
  VICTIM_CHECK(got == sizeof info && info.ssi_int == expected, "signalfd gave %zd, %d, not %d", got,
               info.ssi_int, expected);
  expected++;
}

// signal(7): EINTR after a stop, even with SA_RESTART.
static void do_read_inotify(void) {
  char events[sizeof(struct inotify_event) + NAME_MAX + 1];
  ssize_t got = read(changes, events, sizeof events);
  if (got < 0 && errno == EINTR) {
    atomic_fetch_add(&victim_status->interrupted, 1);
    return;
  }
  const struct inotify_event* event = (void*)events;
  VICTIM_CHECK(got >= (ssize_t)sizeof *event && (event->mask & IN_ATTRIB) != 0,
               "inotify gave %zd, mask %#x", got, event->mask);
}

struct Message {
  long type;
  uint64_t number;
};

// msgrcv, semop and semtimedop fail with EINTR after a stop as well.
static void do_msgrcv(void) {
  static uint64_t expected;
  struct Message message;
  ssize_t got = msgrcv(messages, &message, sizeof message.number, 1, 0);
  if (got < 0 && errno == EINTR) {
    atomic_fetch_add(&victim_status->interrupted, 1);
    return;
  }
  VICTIM_CHECK(got == sizeof message.number && message.number == expected,
               "msgrcv gave %zd, %lu, not %lu", got, message.number, expected);
  expected++;
}

static void do_semop(void) {
  struct sembuf take = {.sem_num = 0, .sem_op = -1};
  if (semop(semaphores, &take, 1) != 0) {
    VICTIM_CHECK(errno == EINTR, "semop");
    atomic_fetch_add(&victim_status->interrupted, 1);
  }
}

static void do_semtimedop(void) {
  struct sembuf take = {.sem_num = 1, .sem_op = -1};  // nobody gives
  struct timespec wait = {0, (long)kWaitNs};
  uint64_t start = victim_now_ns();
  VICTIM_CHECK(semtimedop(semaphores, &take, 1, &wait) != 0, "semtimedop");
  if (errno == EINTR) {
    atomic_fetch_add(&victim_status->interrupted, 1);
    return;
  }
  VICTIM_CHECK(errno == EAGAIN, "semtimedop");
  check_late("semtimedop", start, kWaitNs);
}

// Two threads hold the lock in turn, each through an open file of its own.
static void hold_flock(int which) {
  static _Atomic int holders;
  VICTIM_CHECK(flock(flocked[which], LOCK_EX) == 0, "flock");
  VICTIM_CHECK(atomic_fetch_add(&holders, 1) == 0, "flock: two have the lock");
  usleep(10000);
  atomic_fetch_sub(&holders, 1);
  VICTIM_CHECK(flock(flocked[which], LOCK_UN) == 0, "flock");
  usleep(1000);
}
static void do_flock(void) { hold_flock(0); }
static void do_other_flock(void) { hold_flock(1); }

static void hold_range(int which) {
  static _Atomic int holders;
  struct flock range = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_len = 1};
  VICTIM_CHECK(fcntl(flocked[which], F_OFD_SETLKW, &range) == 0, "F_OFD_SETLKW");
  VICTIM_CHECK(atomic_fetch_add(&holders, 1) == 0, "F_OFD_SETLKW: two have the lock");
  usleep(10000);
  atomic_fetch_sub(&holders, 1);
  range.l_type = F_UNLCK;
  VICTIM_CHECK(fcntl(flocked[which], F_OFD_SETLK, &range) == 0, "F_OFD_SETLK");
  usleep(1000);
}
static void do_range_lock(void) { hold_range(0); }
static void do_other_range_lock(void) { hold_range(1); }

static void do_pselect(void) {
  fd_set set;
  FD_ZERO(&set);
  FD_SET(quiet_pipe[0], &set);
  struct timespec wait = {0, (long)kWaitNs};
  sigset_t mask;
  sigfillset(&mask);
  uint64_t start = victim_now_ns();
  int got = pselect(quiet_pipe[0] + 1, &set, NULL, NULL, &wait, &mask);
  VICTIM_CHECK(got == 0, "pselect gave %d", got);
  check_late("pselect", start, kWaitNs);
}

// Blocks in write while the pipe is full; the other side drains it in bulk.
static void do_write(void) {
  static uint64_t words[kPipeBulk / 8];
  static uint64_t next;
  for (size_t i = 0; i < kPipeBulk / 8; i++) {
    words[i] = next++;
  }
  for (size_t done = 0; done < kPipeBulk;) {
    ssize_t put = write(bulk_pipe[1], (char*)words + done, kPipeBulk - done);
    VICTIM_CHECK(put > 0, "write to a pipe gave %zd", put);
    done += (size_t)put;
  }
}

static void do_drain(void) {
  static uint64_t expected;
  static uint64_t words[kPipeBulk / 8];
  usleep(20000);  // lets the writer block
  for (size_t done = 0; done < kPipeBulk;) {
    ssize_t got = read(bulk_pipe[0], (char*)words + done, kPipeBulk - done);
    VICTIM_CHECK(got > 0, "bulk read gave %zd", got);
    done += (size_t)got;
  }
  for (size_t i = 0; i < kPipeBulk / 8; i++) {
    VICTIM_CHECK(words[i] == expected, "the bulk pipe gave %lu, not %lu", words[i], expected);
    expected++;
  }
}

static void wait_in_epoll(const sigset_t* mask) {
  int epoll = epoll_create1(EPOLL_CLOEXEC);
  struct epoll_event event = {.events = EPOLLIN, .data.u64 = 7};
  epoll_ctl(epoll, EPOLL_CTL_ADD, quiet_pipe[0], &event);
  uint64_t start = victim_now_ns();
  int got = epoll_pwait(epoll, &event, 1, kWaitMs, mask);
  int error = errno;
  close(epoll);
  errno = error;
  if (got < 0 && errno == EINTR) {
    atomic_fetch_add(&victim_status->interrupted, 1);
    return;
  }
  VICTIM_CHECK(got == 0, "epoll_wait gave %d", got);
  check_late("epoll_wait", start, kWaitNs);
}
static void do_epoll(void) { wait_in_epoll(NULL); }

static void do_epoll_with_mask(void) {
  sigset_t mask;
  sigfillset(&mask);
  wait_in_epoll(&mask);
  sigset_t now;
  pthread_sigmask(SIG_BLOCK, NULL, &now);
  VICTIM_CHECK(!sigismember(&now, SIGTERM), "epoll_pwait's mask has stayed");
}

static void do_sigtimedwait(void) {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGUSR2);
  struct timespec wait = {0, (long)kWaitNs};
  uint64_t start = victim_now_ns();
  int got = sigtimedwait(&set, NULL, &wait);
  VICTIM_CHECK(got == -1, "sigtimedwait gave %d", got);
  if (errno == EINTR) {
    atomic_fetch_add(&victim_status->interrupted, 1);
    return;
  }
  VICTIM_CHECK(errno == EAGAIN, "sigtimedwait");
  check_late("sigtimedwait", start, kWaitNs);
}

static void do_accept(void) {
  static uint64_t expected;
  uint64_t number = 0;
  int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
  VICTIM_CHECK(fd >= 0, "accept");
  ssize_t got = recv(fd, &number, sizeof number, 0);
  VICTIM_CHECK(got == sizeof number && number == expected, "the connection brought %lu, not %lu",
               number, expected);
  expected++;
  close(fd);
}

static void do_recv(void) {
  static uint64_t expected;
  uint64_t number = 0;
  ssize_t got = recv(pair[0], &number, sizeof number, 0);
  VICTIM_CHECK(got == sizeof number && number == expected, "recv gave %zd, number %lu, not %lu",
               got, number, expected);
  expected++;
}

static void do_wait(void) {
  pid_t child = fork();
  VICTIM_CHECK(child >= 0, "fork");
  if (child == 0) {
    struct timespec wait = {0, (long)kWaitNs / 2};
    nanosleep(&wait, NULL);
    _exit(9);
  }
  int status = 0;
  pid_t got = waitpid(child, &status, 0);
  VICTIM_CHECK(got == child && WIFEXITED(status) && WEXITSTATUS(status) == 9,
               "waitpid gave %d, status %#x", got, status);
}

static void note(int signal) {
  (void)signal;
  atomic_fetch_add(&handled, 1);
}

static void do_sigsuspend(void) {
  sigset_t none;
  sigfillset(&none);
  sigdelset(&none, SIGUSR1);
  uint32_t before = atomic_load(&handled);
  atomic_store(&suspended_tid, gettid());
  int got = sigsuspend(&none);
  VICTIM_CHECK(got == -1 && errno == EINTR, "sigsuspend gave %d", got);
  VICTIM_CHECK(atomic_load(&handled) != before, "sigsuspend came back without a signal");
}

struct Call {
  const char* name;
  void (*run)(void);
};

static const struct Call calls[] = {
    {"nanosleep", do_nanosleep},
    {"clock_nanosleep", do_absolute_sleep},
    {"poll", do_poll},
    {"ppoll", do_ppoll},
    {"select", do_select},
    {"futex with a time-out", do_futex_timeout},
    {"futex until a time", do_futex_until},
    {"futex woken", do_futex_woken},
    {"read of a pipe", do_read},
    {"write to a full pipe", do_write},
    {"drain of a full pipe", do_drain},
    {"epoll_wait", do_epoll},
    {"sigtimedwait", do_sigtimedwait},
    {"accept", do_accept},
    {"recv", do_recv},
    {"waitpid", do_wait},
    {"sigsuspend", do_sigsuspend},
    {"pselect", do_pselect},
    {"epoll_pwait", do_epoll_with_mask},
    {"read of a socket pair", do_read_pair},
    {"read of an eventfd", do_read_eventfd},
    {"read of a timerfd", do_read_timerfd},
    {"read of a signalfd", do_read_signalfd},
    {"read of an inotify", do_read_inotify},
    {"msgrcv", do_msgrcv},
    {"semop", do_semop},
    {"semtimedop", do_semtimedop},
    {"flock", do_flock},
    {"flock of the other", do_other_flock},
    {"F_OFD_SETLKW", do_range_lock},
    {"F_OFD_SETLKW of the other", do_other_range_lock},
};
enum { kCalls = sizeof calls / sizeof calls[0] };

static void* repeat(void* argument) {
  int slot = (int)(intptr_t)argument;
  for (;;) {
    calls[slot].run();
    atomic_fetch_add(&victim_status->counters[slot], 1);
  }
  return NULL;
}

static void disturb_the_others(uint64_t number) {
  static const uint64_t one = 1;
  VICTIM_CHECK(write(read_pair[1], &number, sizeof number) == sizeof number, "write to the pair");
  VICTIM_CHECK(write(counter, &one, sizeof one) == sizeof one, "write to the eventfd");
  union sigval value = {.sival_int = (int)number};
  VICTIM_CHECK(sigqueue(getpid(), SIGRTMIN, value) == 0, "sigqueue");
  VICTIM_CHECK(chmod(changed, number % 2 ? 0600 : 0640) == 0, "chmod");
  struct Message message = {1, number};
  VICTIM_CHECK(msgsnd(messages, &message, sizeof message.number, 0) == 0, "msgsnd");
  struct sembuf give = {.sem_num = 0, .sem_op = 1};
  VICTIM_CHECK(semop(semaphores, &give, 1) == 0, "semop");
}

static void* disturb(void* unused) {
  (void)unused;
  for (uint64_t number = 0;; number++) {
    usleep(30000);
    VICTIM_CHECK(write(number_pipe[1], &number, sizeof number) == sizeof number, "write");
    VICTIM_CHECK(send(pair[1], &number, sizeof number, 0) == sizeof number, "send");
    disturb_the_others(number);
    atomic_fetch_add(&futex_word, 1);
    syscall(SYS_futex, &futex_word, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    VICTIM_CHECK(connect(fd, (void*)&listener_address, listener_length) == 0, "connect");
    VICTIM_CHECK(send(fd, &number, sizeof number, MSG_NOSIGNAL) == sizeof number, "send");
    close(fd);
    if (atomic_load(&suspended_tid) != 0) {
      syscall(SYS_tgkill, getpid(), atomic_load(&suspended_tid), SIGUSR1);
    }
  }
  return NULL;
}

static void set_up_files(void) {
  VICTIM_CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, read_pair) == 0, "socketpair");
  counter = eventfd(0, EFD_CLOEXEC | EFD_SEMAPHORE);
  sigset_t mask;
  sigemptyset(&mask);
  sigaddset(&mask, SIGRTMIN);
  alarm_signals = signalfd(-1, &mask, SFD_CLOEXEC);
  victim_path(changed, sizeof changed, "changed");
  close(open(changed, O_CREAT | O_WRONLY | O_CLOEXEC, 0640));
  changes = inotify_init1(IN_CLOEXEC);
  VICTIM_CHECK(inotify_add_watch(changes, changed, IN_ATTRIB) > 0, "inotify_add_watch");
  char path[PATH_MAX];
  victim_path(path, sizeof path, "locked");
  for (int i = 0; i < 2; i++) {
    flocked[i] = open(path, O_CREAT | O_RDWR | O_CLOEXEC, 0600);
    VICTIM_CHECK(flocked[i] >= 0, "open %s", path);
  }
}

// Queue and semaphores outlive the process, and no victim ends by itself: those that others made
// more than an hour ago are removed.
static void remove_old_system_v(void) {
  time_t old = time(NULL) - 3600;
  struct msqid_ds queue;
  for (int i = msgctl(0, MSG_INFO, (void*)&(struct msginfo){0}); i >= 0; i--) {
    int id = msgctl(i, MSG_STAT, &queue);
    if (id >= 0 && queue.msg_perm.__key >> 24 == kSystemVKeys && queue.msg_ctime < old) {
      msgctl(id, IPC_RMID, NULL);
    }
  }
  struct semid_ds set;
  for (int i = semctl(0, 0, SEM_INFO, &(struct seminfo){0}); i >= 0; i--) {
    int id = semctl(i, 0, SEM_STAT, &set);
    if (id >= 0 && set.sem_perm.__key >> 24 == kSystemVKeys && set.sem_ctime < old) {
      semctl(id, 0, IPC_RMID);
    }
  }
}

static void set_up_system_v(void) {
  remove_old_system_v();
  key_t key = (kSystemVKeys << 24) + getpid();
  messages = msgget(key, IPC_CREAT | 0600);
  semaphores = semget(key, 2, IPC_CREAT | 0600);
  VICTIM_CHECK(messages >= 0 && semaphores >= 0, "System V queue and semaphores");
}

static void set_up(void) {
  sigset_t mask;
  sigemptyset(&mask);
  sigaddset(&mask, SIGUSR1);
  sigaddset(&mask, SIGUSR2);
  sigaddset(&mask, SIGRTMIN);
  sigprocmask(SIG_SETMASK, &mask, NULL);
  struct sigaction action = {.sa_handler = note};
  sigaction(SIGUSR1, &action, NULL);
  VICTIM_CHECK(pipe(quiet_pipe) == 0 && pipe(number_pipe) == 0 && pipe(bulk_pipe) == 0, "pipe");
  VICTIM_CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0, "socketpair");
  listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  listener_address.sun_family = AF_UNIX;
  int length = snprintf(listener_address.sun_path + 1, 100, "victim-%d", getpid());
  listener_length = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1u + (unsigned)length);
  VICTIM_CHECK(bind(listener, (void*)&listener_address, listener_length) == 0, "bind");
  VICTIM_CHECK(listen(listener, 16) == 0, "listen");
}

int main(int argc, char** argv) {
  static const char* names[kCalls];
  victim_start(argc, argv);
  set_up();
  set_up_files();
  set_up_system_v();
  pthread_t thread;
  for (intptr_t i = 0; i < kCalls; i++) {
    names[i] = calls[i].name;
    VICTIM_CHECK(pthread_create(&thread, NULL, repeat, (void*)i) == 0, "no thread");
  }
  VICTIM_CHECK(pthread_create(&thread, NULL, disturb, NULL) == 0, "no thread");
  victim_ready();
  for (;;) {
    victim_rounds_of_counters(names, kCalls);
  }
}
