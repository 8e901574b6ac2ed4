// File locks of the three kinds stay held: a second process (in the group) finds them taken, and
// the POSIX one belongs to the right pid. A thread waits in F_SETLKW and gets its lock in the end.
#include <sys/file.h>
#include <sys/wait.h>

#include "victim.h"

enum { kPosixAt = 10, kReadAt = 100, kTurnAt = 1000 };

static int flocked, posix_file, ofd_file;

static int open_file(const char* name) {
  char path[PATH_MAX];
  victim_path(path, sizeof path, name);
  int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  VICTIM_CHECK(fd >= 0, "open %s", path);
  return fd;
}

static struct flock range(short type, off_t at) {
  return (struct flock){.l_type = type, .l_whence = SEEK_SET, .l_start = at, .l_len = 5};
}

static void lock(int fd, int command, short type, off_t at) {
  struct flock lock = range(type, at);
  VICTIM_CHECK(fcntl(fd, command, &lock) == 0, "lock at %ld", at);
}

static void expect_taken(int fd, int command, short type, off_t at, const char* what) {
  struct flock lock = range(type, at);
  VICTIM_CHECK(fcntl(fd, command, &lock) == -1 && (errno == EAGAIN || errno == EACCES),
               "the %s lock could be taken", what);
}

// The competitor opens the files itself: it shares no open file with the holder.
static void compete(pid_t holder) {
  int flock_fd = open_file("flock");
  int posix_fd = open_file("posix");
  int ofd_fd = open_file("ofd");
  VICTIM_CHECK(flock(flock_fd, LOCK_EX | LOCK_NB) == -1 && errno == EWOULDBLOCK,
               "the flock could be taken");
  expect_taken(posix_fd, F_SETLK, F_WRLCK, kPosixAt, "POSIX");
  expect_taken(posix_fd, F_SETLK, F_WRLCK, kReadAt, "POSIX read");
  lock(posix_fd, F_SETLK, F_RDLCK, kReadAt);
  expect_taken(ofd_fd, F_OFD_SETLK, F_WRLCK, kPosixAt, "OFD");
  struct flock asked = range(F_WRLCK, kPosixAt);
  VICTIM_CHECK(fcntl(posix_fd, F_GETLK, &asked) == 0 && asked.l_type == F_WRLCK, "F_GETLK");
  VICTIM_CHECK(asked.l_pid == holder, "the POSIX lock belongs to %d, not %d", asked.l_pid, holder);
  close(flock_fd);
  close(posix_fd);
  close(ofd_fd);
}

int main(int argc, char** argv) {
  victim_start(argc, argv);
  flocked = open_file("flock");
  posix_file = open_file("posix");
  ofd_file = open_file("ofd");
  VICTIM_CHECK(flock(flocked, LOCK_EX) == 0, "flock");
  lock(posix_file, F_SETLK, F_WRLCK, kPosixAt);
  lock(posix_file, F_SETLK, F_RDLCK, kReadAt);
  lock(posix_file, F_SETLK, F_WRLCK, kTurnAt);
  lock(ofd_file, F_OFD_SETLK, F_WRLCK, kPosixAt);
  pid_t holder = getpid();
  uint64_t* waiter_round =
      mmap(NULL, kPage, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  pid_t competitor = fork();
  if (competitor == 0) {
    for (;;) {
      compete(holder);
      atomic_fetch_add(&victim_status->counters[0], 1);
      victim_pace();
    }
  }
  if (fork() == 0) {  // always waiting for a lock that the root lets go now and then
    int fd = open_file("posix");
    for (;;) {
      lock(fd, F_SETLKW, F_WRLCK, kTurnAt);
      __atomic_add_fetch(waiter_round, 1, __ATOMIC_SEQ_CST);
      lock(fd, F_SETLK, F_UNLCK, kTurnAt);
      atomic_fetch_add(&victim_status->counters[1], 1);
      usleep(1000);
    }
  }
  static const char* const names[] = {"competitor", "waiter"};
  victim_ready();
  for (;;) {
    uint64_t before = __atomic_load_n(waiter_round, __ATOMIC_SEQ_CST);
    usleep(20000);
    VICTIM_CHECK(__atomic_load_n(waiter_round, __ATOMIC_SEQ_CST) == before,
                 "the waiter got a lock that is held");
    lock(posix_file, F_SETLK, F_UNLCK, kTurnAt);
    victim_rounds_of_counters(names, 2);
    lock(posix_file, F_SETLKW, F_WRLCK, kTurnAt);
  }
}
