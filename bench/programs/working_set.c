// Memory of which a share is touched all the time and the rest never:
//   working_set COUNTERS MIB SHARE% [TOUCHES-A-SECOND [GRAIN [TOUCHES-A-WRITE]]]
// Which pages are touched is drawn by lot, in blocks of GRAIN pages (default 1); 0 touches a second
// is as fast as it goes. One touch in TOUCHES-A-WRITE (default 1024) is a write. Half of each page
// cannot be compressed.
//
// SIGUSR1: touches pages outside the working set one by one, in random order, and counts how long
// each took: counter 2 is how often that was done, from kHistogram on there are kBuckets counters,
// 16 to an octave, from 256 ns on. SIGUSR2: touches kSweepPages of them one after the other;
// counter 3 is how often, counter 4 how many, counter 5 the nanoseconds that all took together.
// Counter 0: touches so far. Counter 1: pages found with other content than their own.
#include <signal.h>

#include "bench.h"

enum { kWords = kPageBytes / 8, kHistogram = 64, kBuckets = 448 };
enum { kJumps = 4000, kSweepPages = 8192, kChunk = 1024 };

static _Atomic uint64_t* counters;
static uint64_t* memory;
static uint64_t pages, grain = 1;
static unsigned share;
static volatile sig_atomic_t jump_asked, sweep_asked;

static void ask(int number) {
  if (number == SIGUSR1) {
    jump_asked = 1;
  } else {
    sweep_asked = 1;
  }
}

static uint64_t mixed(uint64_t value) {
  value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9u;
  value = (value ^ (value >> 27)) * 0x94d049bb133111ebu;
  return value ^ (value >> 31);
}

static int is_hot(uint64_t page) { return mixed(page / grain + 1) % 100 < share; }

static void look(uint64_t page) {
  const volatile uint64_t* words = memory + page * kWords;
  if (words[0] != mixed(page)) atomic_fetch_add(&counters[1], 1);
}

static void count_ns(uint64_t ns) {
  unsigned bucket = 0;
  if (ns >= 256) {
    unsigned octave = 63 - (unsigned)__builtin_clzll(ns);
    bucket = (octave - 8) * 16 + (unsigned)(ns >> (octave - 4) & 15);
  }
  if (bucket >= kBuckets) bucket = kBuckets - 1;
  atomic_fetch_add(&counters[kHistogram + bucket], 1);
}

static void jump_about(void) {
  static uint64_t random = 7;
  for (int i = 0; i < kBuckets; i++) atomic_store(&counters[kHistogram + i], 0);
  for (int done = 0; done < kJumps && share < 100;) {
    random = mixed(random + 0x9e3779b97f4a7c15u);
    uint64_t page = random % pages;
    if (is_hot(page)) continue;
    uint64_t before = bench_now_ns();
    look(page);
    count_ns(bench_now_ns() - before);
    done++;
  }
  atomic_fetch_add(&counters[2], 1);
}

static void sweep(void) {
  static uint64_t at;
  uint64_t ns = 0, done = 0;
  for (uint64_t looked = 0; done < kSweepPages && looked < pages; looked++) {
    uint64_t page = at++ % pages;
    if (is_hot(page)) continue;
    uint64_t before = bench_now_ns();
    look(page);
    ns += bench_now_ns() - before;
    done++;
  }
  atomic_store(&counters[4], done);
  atomic_store(&counters[5], ns);
  atomic_fetch_add(&counters[3], 1);
}

static void fill(uint64_t random_words) {
  for (uint64_t page = 0; page < pages; page++) {
    uint64_t* words = memory + page * kWords;
    for (uint64_t word = 0; word < random_words; word++) words[word] = mixed(page + word * pages);
    words[kWords - 1] = page;
  }
}

int main(int argc, char** argv) {
  counters = bench_counters(argc, argv);
  if (argc < 4) return 2;
  pages = strtoul(argv[2], NULL, 10) * 256;
  share = (unsigned)strtoul(argv[3], NULL, 10);
  uint64_t rate = argc > 4 ? strtoul(argv[4], NULL, 10) : 0;
  grain = argc > 5 ? strtoul(argv[5], NULL, 10) : 1;
  uint64_t touches_a_write = argc > 6 ? strtoul(argv[6], NULL, 10) : 1024;
  memory =
      mmap(NULL, pages * kPageBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  uint32_t* hot = malloc(pages * sizeof *hot);
  if (memory == MAP_FAILED || hot == NULL || grain == 0 || touches_a_write == 0) return 1;
  fill(kWords / 2);
  uint64_t count = 0;
  for (uint64_t page = 0; page < pages; page++) {
    if (is_hot(page)) hot[count++] = (uint32_t)page;
  }
  signal(SIGUSR1, ask);
  signal(SIGUSR2, ask);
  uint64_t start = bench_now_ns(), written = 0;
  for (uint64_t touch = 0, next = 0;;) {
    for (int i = 0; i < kChunk && count != 0; i++, touch++) {
      uint64_t page = hot[next];
      // Evenly, and not in the order in which they lie: 7919 is a prime.
      next = (next + 7919) % count;
      look(page);
      if (touch % touches_a_write == 0) memory[page * kWords + kWords - 2] = ++written;
    }
    atomic_store(&counters[0], touch);
    if (jump_asked) {
      jump_asked = 0;
      jump_about();
    }
    if (sweep_asked) {
      sweep_asked = 0;
      sweep();
    }
    while (rate != 0 && touch > (bench_now_ns() - start) / 1000 * rate / 1000000) usleep(500);
  }
}
