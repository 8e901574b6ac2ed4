// Memory that grows by 64 KiB a round up to a limit (MiB as second argument, default 64), for ever
// checked from its first page to its last. With "hold" as third argument it begins to grow when it
// gets SIGUSR1. Whoever wants it to run out of memory gives it a control group of its own.
#include <signal.h>

#include "victim.h"

enum { kStepPages = 16, kChecksARound = 64 };

static char* memory;
static volatile sig_atomic_t may_grow = 1;

static void grow(int signal) { may_grow = signal != 0; }

static void fill(size_t page) {
  uint64_t* words = (uint64_t*)(memory + page * kPage);
  words[0] = page ^ 0x5eed;
  words[511] = ~page;
}

static void check(size_t page) {
  const uint64_t* words = (const uint64_t*)(memory + page * kPage);
  VICTIM_CHECK(words[0] == (page ^ 0x5eed) && words[511] == ~page, "page %zu: %#lx %#lx", page,
               words[0], words[511]);
}

int main(int argc, char** argv) {
  victim_start(argc, argv);
  size_t pages_max = (argc > 2 ? strtoul(argv[2], NULL, 10) : 64) * 256;
  size_t bytes = pages_max * kPage;
  memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  VICTIM_CHECK(memory != MAP_FAILED, "no memory");
  may_grow = argc <= 3 || strcmp(argv[3], "hold") != 0;
  signal(SIGUSR1, grow);
  fill(0);
  victim_ready();
  size_t checked = 0;
  for (size_t pages = 1;;) {
    for (int i = 0; may_grow && i < kStepPages && pages < pages_max; i++) {
      fill(pages++);
    }
    atomic_store(&victim_status->counters[0], pages);
    for (int i = 0; i < kChecksARound; i++) {
      checked = (checked + 1) % pages;
      check(checked);
    }
    victim_round();
    victim_pace();
  }
}
