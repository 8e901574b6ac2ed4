// Regular files and directories: offsets, flags, positions, a deleted file, append mode, path-only
// and device descriptors, odd descriptor numbers, and offsets shared by dup and by a child.
#include <dirent.h>
#include <signal.h>
#include <sys/syscall.h>

#include "snapshot.h"

enum { kAppend = 200, kDeleted = 201, kDup = 333, kPath = 444, kDirectory = 100 };

static int numbers = -1;  // a file of numbers that is written at its offset
static int shared = -1;   // a file that parent and child write in turn
static int to_child[2], to_parent[2];
static uint64_t next_number;

static int open_file(const char* name, int flags, int as) {
  char path[PATH_MAX];
  victim_path(path, sizeof path, name);
  int fd = open(path, flags, 0640);
  VICTIM_CHECK(fd >= 0, "open %s", path);
  if (as >= 0) {
    VICTIM_CHECK(dup3(fd, as, flags & O_CLOEXEC) == as, "dup3");
    close(fd);
    return as;
  }
  return fd;
}

static void take_flags(struct Snapshot* snapshot) {
  for (int fd = 3; fd < 512; fd++) {
    int flags = fcntl(fd, F_GETFD);
    if (flags >= 0) {
      snapshot_add(snapshot, "fd %d: %x %x", fd, flags, fcntl(fd, F_GETFL));
      snapshot_add(snapshot, " owner %d signal %d", fcntl(fd, F_GETOWN), fcntl(fd, F_GETSIG));
      char name[64];
      snprintf(name, sizeof name, " /proc/self/fd/%d", fd);
      struct stat status;
      fstat(fd, &status);
      snapshot_add(snapshot, " %lx:%lu mode %o links %lu\n", status.st_dev,
                   fd == to_child[1] || fd == to_parent[0] ? 0 : status.st_ino, status.st_mode,
                   status.st_nlink);
    }
  }
}

static void check_offsets(void) {
  VICTIM_CHECK(lseek(numbers, 0, SEEK_CUR) == (off_t)(8 * next_number),
               "the offset is %ld, not %lu", lseek(numbers, 0, SEEK_CUR), 8 * next_number);
  uint64_t value = next_number;
  VICTIM_CHECK(write(next_number % 2 ? kDup : numbers, &value, 8) == 8, "write");
  next_number++;
  uint64_t back = 0;
  off_t at = (off_t)(8 * (next_number - 1));
  VICTIM_CHECK(pread(numbers, &back, 8, at) == 8 && back == value, "read back %lu", back);
  VICTIM_CHECK(write(kAppend, &value, 8) == 8, "append");
  struct stat status;
  VICTIM_CHECK(fstat(kAppend, &status) == 0 && status.st_size == (off_t)(8 * next_number),
               "the appended file has %ld bytes, not %lu", status.st_size, 8 * next_number);
}

static void check_deleted(void) {
  char text[16] = "";
  VICTIM_CHECK(pread(kDeleted, text, 7, 0) == 7 && strcmp(text, "deleted") == 0,
               "the deleted file reads `%s'", text);
  VICTIM_CHECK(lseek(kDeleted, 0, SEEK_CUR) == 3, "the deleted file's offset");
  VICTIM_CHECK(pwrite(kDeleted, &next_number, 8, 100) == 8, "writing to the deleted file");
}

static void check_devices(const int* devices) {
  char byte = 1;
  VICTIM_CHECK(write(devices[0], &byte, 1) == 1 && read(devices[0], &byte, 1) == 0, "/dev/null");
  VICTIM_CHECK(read(devices[1], &byte, 1) == 1 && byte == 0, "/dev/zero");
  VICTIM_CHECK(read(devices[2], &byte, 1) == 1, "/dev/urandom");
  VICTIM_CHECK(write(devices[3], &byte, 1) == -1 && errno == ENOSPC, "/dev/full");
}

// The directory's position is where the first entries were read; the rest has the same names.
static uint64_t names_after(off_t position) {
  char buffer[4096];
  uint64_t sum = 0;
  VICTIM_CHECK(lseek(kDirectory, position, SEEK_SET) == position, "seeking in a directory");
  for (;;) {
    long got = syscall(SYS_getdents64, kDirectory, buffer, sizeof buffer);
    VICTIM_CHECK(got >= 0, "getdents64");
    if (got == 0) {
      return sum;
    }
    for (long at = 0; at < got; at += ((struct dirent64*)(buffer + at))->d_reclen) {
      sum += ((struct dirent64*)(buffer + at))->d_ino;
    }
  }
}

static _Noreturn void child(void) {
  for (;;) {
    uint64_t round;
    VICTIM_CHECK(read(to_child[0], &round, 8) == 8, "read");
    VICTIM_CHECK(lseek(shared, 0, SEEK_CUR) == (off_t)(16 * round + 8), "the shared offset is %ld",
                 lseek(shared, 0, SEEK_CUR));
    VICTIM_CHECK(write(shared, &round, 8) == 8, "write");
    VICTIM_CHECK(write(to_parent[1], &round, 8) == 8, "write");
  }
}

static void check_shared(uint64_t round) {
  uint64_t back = round;
  VICTIM_CHECK(write(shared, &round, 8) == 8, "write");
  VICTIM_CHECK(write(to_child[1], &round, 8) == 8, "write");
  VICTIM_CHECK(read(to_parent[0], &back, 8) == 8 && back == round, "the child answered %lu", back);
  VICTIM_CHECK(lseek(shared, 0, SEEK_CUR) == (off_t)(16 * round + 16), "the shared offset is %ld",
               lseek(shared, 0, SEEK_CUR));
}

static void set_up(int* devices) {
  for (int i = 0; i < 40; i++) {
    char name[16];
    snprintf(name, sizeof name, "entry-%d", i);
    close(open_file(name, O_CREAT | O_WRONLY, -1));
  }
  numbers = open_file("numbers", O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, -1);
  VICTIM_CHECK(dup2(numbers, kDup) == kDup, "dup2");
  open_file("appended", O_WRONLY | O_CREAT | O_APPEND | O_TRUNC | O_NONBLOCK, kAppend);
  open_file("deleted", O_RDWR | O_CREAT | O_NOATIME, kDeleted);
  VICTIM_CHECK(write(kDeleted, "deleted", 7) == 7 && lseek(kDeleted, 3, SEEK_SET) == 3, "write");
  char path[PATH_MAX];
  victim_path(path, sizeof path, "deleted");
  unlink(path);
  open_file("entry-1", O_PATH | O_CLOEXEC, kPath);
  open_file(".", O_RDONLY | O_DIRECTORY, kDirectory);
  shared = open_file("shared-offset", O_RDWR | O_CREAT | O_TRUNC, -1);
  static const char* const names[] = {"/dev/null", "/dev/zero", "/dev/urandom", "/dev/full"};
  for (int i = 0; i < 4; i++) {
    devices[i] = open(names[i], O_RDWR | O_CLOEXEC);
    VICTIM_CHECK(devices[i] >= 0, "%s", names[i]);
  }
  VICTIM_CHECK(pipe(to_child) == 0 && pipe(to_parent) == 0, "pipe");
  fcntl(to_parent[0], F_SETOWN, getpid());
  fcntl(to_parent[0], F_SETSIG, SIGRTMIN + 3);
}

int main(int argc, char** argv) {
  victim_start(argc, argv);
  int devices[4];
  set_up(devices);
  if (fork() == 0) {
    child();
  }
  char buffer[400];
  VICTIM_CHECK(syscall(SYS_getdents64, kDirectory, buffer, sizeof buffer) > 0, "getdents64");
  off_t position = lseek(kDirectory, 0, SEEK_CUR);
  uint64_t rest = names_after(position);
  lseek(kDirectory, position, SEEK_SET);
  static struct Snapshot before;
  static struct Snapshot now;
  take_flags(&before);
  victim_ready();
  for (uint64_t round = 0;; round++) {
    VICTIM_CHECK(lseek(kDirectory, 0, SEEK_CUR) == position, "the directory's position is %ld",
                 lseek(kDirectory, 0, SEEK_CUR));
    VICTIM_CHECK(names_after(position) == rest, "the directory holds other names");
    lseek(kDirectory, position, SEEK_SET);
    check_offsets();
    check_deleted();
    check_devices(devices);
    check_shared(round);
    now.used = 0;
    take_flags(&now);
    snapshot_compare(&before, &now);
    victim_round();
    victim_pace();
  }
}
