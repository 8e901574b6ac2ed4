// Memory (MiB as second argument, default 64) of which a fifth is touched all the time and the rest
// never, until SIGUSR1: then it does to its cold memory whatever a program may do, and checks all
// of it. counters[0]: how often that was done; from 1 on: rounds of threads that have data of their
// own.
#include <pthread.h>
#include <signal.h>
#include <sys/wait.h>

#include "victim.h"

enum { kHotShare = 5, kHotPagesARound = 512, kThreads = 4, kLocalWords = 1024 };

static volatile sig_atomic_t asked;
static size_t pages;

static void ask(int signal) { asked = signal; }

static uint64_t word_of(size_t page, size_t word) {
  uint64_t value = (page * 512 + word + 1) * 0x9e3779b97f4a7c15u;
  return value ^ (value >> 29);
}

static void fill(uint64_t* memory, size_t page) {
  // Half of it can be compressed.
  for (size_t word = 0; word < 256; word++) memory[page * 512 + word] = word_of(page, word);
  memory[page * 512 + 511] = word_of(page, 511);
}

static void check(const uint64_t* memory, size_t at, size_t page, const char* when) {
  const uint64_t* words = memory + at * 512;
  for (size_t word = 0; word < 256; word += 51) {
    VICTIM_CHECK(words[word] == word_of(page, word), "%s: page %zu word %zu is %#lx", when, page,
                 word, words[word]);
  }
  VICTIM_CHECK(words[511] == word_of(page, 511), "%s: end of page %zu is %#lx", when, page,
               words[511]);
}

static void check_all(const uint64_t* memory, const char* when) {
  for (size_t page = 0; page < pages; page++) check(memory, page, page, when);
}

static void check_in_child(const uint64_t* memory) {
  pid_t child = fork();
  VICTIM_CHECK(child >= 0, "fork");
  if (child == 0) {
    for (size_t page = pages; page-- > pages / 2;) check(memory, page, page, "in a child");
    _exit(0);
  }
  for (size_t page = pages / 2; page < pages / 2 + 64; page++) check(memory, page, page, "beside");
  int status = 0;
  VICTIM_CHECK(waitpid(child, &status, 0) == child && status == 0, "the child ended with %d",
               status);
}

// The last eighth is taken for this and filled again.
static void discard(uint64_t* memory) {
  size_t first = pages - pages / 8;
  char* start = (char*)(memory + first * 512);
  size_t half = pages / 16 * kPage;
  VICTIM_CHECK(madvise(start, half, MADV_DONTNEED) == 0, "MADV_DONTNEED");
  VICTIM_CHECK(madvise(start + half, half, MADV_FREE) == 0, "MADV_FREE");
  for (size_t page = first; page < pages; page++) {
    const uint64_t* words = memory + page * 512;
    int zero = words[0] == 0 && words[511] == 0;
    int whole = words[0] == word_of(page, 0) && words[511] == word_of(page, 511);
    int dropped = (char*)words < start + half;
    VICTIM_CHECK(zero || (!dropped && whole), "a discarded page reads %#lx", words[0]);
    fill(memory, page);
  }
}

static uint64_t* move(uint64_t* memory) {
  size_t bytes = pages * kPage;
  void* room = mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  VICTIM_CHECK(room != MAP_FAILED, "room for mremap");
  void* moved = mremap(memory, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, room);
  VICTIM_CHECK(moved == room, "mremap");
  return moved;
}

static void unmap_and_map(uint64_t* memory) {
  size_t first = pages / 4, count = pages / 16;
  void* start = memory + first * 512;
  VICTIM_CHECK(munmap(start, count * kPage) == 0, "munmap");
  void* again = mmap(start, count * kPage, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
  VICTIM_CHECK(again == start, "mmap");
  for (size_t page = first; page < first + count; page++) {
    VICTIM_CHECK(memory[page * 512] == 0, "new memory reads %#lx",
                 (unsigned long)memory[page * 512]);
    fill(memory, page);
  }
}

static __thread uint64_t local[kLocalWords];

static void* keep_own_data(void* argument) {
  const size_t thread = (uintptr_t)argument;
  for (size_t word = 0; word < kLocalWords; word++) local[word] = word_of(thread, word);
  for (;;) {
    for (size_t word = 0; word < kLocalWords; word++) {
      VICTIM_CHECK(local[word] == word_of(thread, word), "thread %zu: word %zu of its own is %#lx",
                   thread, word, local[word]);
    }
    atomic_fetch_add(&victim_status->counters[thread], 1);
    usleep(100000);
  }
}

int main(int argc, char** argv) {
  victim_start(argc, argv);
  pages = (argc > 2 ? strtoul(argv[2], NULL, 10) : 64) * 256;
  void* mapped =
      mmap(NULL, pages * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  VICTIM_CHECK(mapped != MAP_FAILED, "no memory");
  uint64_t* memory = mapped;
  for (size_t page = 0; page < pages; page++) fill(memory, page);
  for (uintptr_t i = 1; i <= kThreads; i++) {
    pthread_t thread;
    VICTIM_CHECK(pthread_create(&thread, NULL, keep_own_data, (void*)i) == 0, "no thread");
  }
  signal(SIGUSR1, ask);
  victim_ready();
  size_t hot = 0;
  for (;;) {
    for (int i = 0; i < kHotPagesARound; i++) {
      hot = (hot + 1) % (pages / kHotShare);
      check(memory, hot, hot, "hot");
    }
    if (asked) {
      asked = 0;
      check_in_child(memory);
      discard(memory);
      memory = move(memory);
      // Last: what is mapped anew does not join its neighbours while these have cold pages.
      unmap_and_map(memory);
      check_all(memory, "at the end");
      atomic_fetch_add(&victim_status->counters[0], 1);
    }
    victim_round();
    victim_pace();
  }
}
