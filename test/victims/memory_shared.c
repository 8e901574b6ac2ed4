// Memory that two processes share, of every kind: shared anonymous, a memfd (with seals, mapped
// twice), a file of /dev/shm, a file on disk, System V segments (one of them removed already).
// Parent and child write in turn and check each other; writes through descriptors count too.
#include <signal.h>
#include <sys/prctl.h>
#include <sys/shm.h>
#include <sys/stat.h>

#include "victim.h"

enum { kPages = 64, kBytes = kPages * kPage };

struct Area {
  const char* name;
  char* at;
  char* other;  // a second mapping of the same memory, or NULL
  int fd;       // or -1
};
enum { kAnonymous, kMemfd, kDevShm, kFile, kSysV, kSysVRemoved, kAreas };
static struct Area areas[kAreas];
static int segment;

static void* map_fd(int fd) {
  void* at = mmap(NULL, kBytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  VICTIM_CHECK(at != MAP_FAILED, "mmap");
  return at;
}

static struct Area of_fd(const char* name, int fd) {
  VICTIM_CHECK(fd >= 0 && ftruncate(fd, kBytes) == 0, "%s", name);
  return (struct Area){name, map_fd(fd), map_fd(fd), fd};
}

static void set_up(void) {
  char path[PATH_MAX];
  areas[kAnonymous] = (struct Area){
      "shared anonymous",
      mmap(NULL, kBytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0), NULL, -1};
  areas[kMemfd] = of_fd("memfd", memfd_create("sealed", MFD_ALLOW_SEALING));
  VICTIM_CHECK(fcntl(areas[kMemfd].fd, F_ADD_SEALS, F_SEAL_GROW | F_SEAL_SHRINK) == 0, "seals");
  snprintf(path, sizeof path, "/replpage-victim-%d", getpid());
  areas[kDevShm] = of_fd("/dev/shm file", shm_open(path, O_RDWR | O_CREAT, 0600));
  shm_unlink(path);  // only the mapping and the descriptor keep it
  victim_path(path, sizeof path, "shared");
  areas[kFile] = of_fd("shared file", open(path, O_RDWR | O_CREAT, 0600));
  segment = shmget(IPC_PRIVATE, kBytes, IPC_CREAT | 0600);
  int removed = shmget(IPC_PRIVATE, kBytes, IPC_CREAT | 0600);
  areas[kSysV] = (struct Area){"System V segment", shmat(segment, NULL, 0), NULL, -1};
  areas[kSysVRemoved] = (struct Area){"removed System V segment", shmat(removed, NULL, 0),
                                      shmat(removed, NULL, 0), -1};
  shmctl(removed, IPC_RMID, NULL);
}

static uint64_t expected(uint64_t round, int area, size_t page) {
  return round * 1000003 + (uint64_t)area * 1009 + page;
}

static size_t page_of(uint64_t round, int area) { return (round * 7 + (uint64_t)area) % kPages; }

static void write_area(uint64_t round, int number) {
  struct Area* area = &areas[number];
  size_t page = page_of(round, number);
  uint64_t value = expected(round, number, page);
  size_t offset = page * kPage + (round % 500) * 8;
  if (area->fd >= 0 && round % 3 == 0) {
    VICTIM_CHECK(pwrite(area->fd, &value, 8, (off_t)offset) == 8, "pwrite to %s", area->name);
  } else if (area->other != NULL && round % 3 == 1) {
    *(volatile uint64_t*)(area->other + offset) = value;
  } else {
    *(volatile uint64_t*)(area->at + offset) = value;
  }
}

static void check_area(uint64_t round, int number) {
  struct Area* area = &areas[number];
  for (uint64_t back = 0; back < 40 && back <= round; back++) {
    size_t page = page_of(round - back, number);
    size_t offset = page * kPage + ((round - back) % 500) * 8;
    uint64_t value = *(volatile uint64_t*)(area->at + offset);
    VICTIM_CHECK(value == expected(round - back, number, page),
                 "%s, page %zu: %#lx, not the value of %lu rounds ago", area->name, page, value,
                 back);
    if (area->other != NULL) {
      VICTIM_CHECK(*(volatile uint64_t*)(area->other + offset) == value,
                   "%s: the two mappings differ in page %zu", area->name, page);
    }
  }
}

static void check_kinds(void) {
  struct shmid_ds info;
  VICTIM_CHECK(shmctl(segment, IPC_STAT, &info) == 0, "the System V segment's id is unknown");
  // A replica, and for a moment a dying primary, is attached too: it keeps a removed segment alive.
  VICTIM_CHECK(info.shm_nattch >= 2 && info.shm_segsz == kBytes, "segment: %lu attached, %zu bytes",
               info.shm_nattch, info.shm_segsz);
  int seals = fcntl(areas[kMemfd].fd, F_GET_SEALS);
  VICTIM_CHECK(seals == (F_SEAL_GROW | F_SEAL_SHRINK), "the memfd's seals are %#x", seals);
  struct stat status;
  VICTIM_CHECK(fstat(areas[kDevShm].fd, &status) == 0 && status.st_nlink == 0, "/dev/shm file");
}

// Waits for the other side's turn to end.
static void pass(int to, int from, uint64_t round) {
  uint64_t number = round;
  VICTIM_CHECK(write(to, &number, 8) == 8, "write");
  VICTIM_CHECK(read(from, &number, 8) == 8 && number == round,
               "the turns are mixed up: %lu, not %lu", number, round);
}

int main(int argc, char** argv) {
  victim_start(argc, argv);
  set_up();
  int down[2];
  int up[2];
  VICTIM_CHECK(pipe(down) == 0 && pipe(up) == 0, "pipe");
  bool child = fork() == 0;
  if (!child) {
    victim_ready();
  } else {
    prctl(PR_SET_NAME, "child");
    uint64_t first;
    VICTIM_CHECK(read(down[0], &first, 8) == 8, "read");
  }
  // The parent writes the even rounds and the child the odd ones; both check every round.
  for (uint64_t round = 0;; round++) {
    bool mine = (round % 2 == 0) != child;
    for (int area = 0; mine && area < kAreas; area++) {
      write_area(round, area);
    }
    if (round > 0 || !child) {
      pass(child ? up[1] : down[1], child ? down[0] : up[0], round);
    } else {
      uint64_t zero = 0;
      VICTIM_CHECK(write(up[1], &zero, 8) == 8, "write");
    }
    for (int area = 0; area < kAreas; area++) {
      check_area(mine ? round : round > 0 ? round - 1 : 0, area);
    }
    check_kinds();
    if (!child) {
      victim_round();
      victim_pace();
    }
  }
}
