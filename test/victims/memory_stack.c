// A stack that grows and is left again, the heap's end moved up and down, huge pages that are
// split, and a PROT_NONE guard that must still raise SIGSEGV with its address.
#include <setjmp.h>
#include <signal.h>

#include "victim.h"

enum { kFrameBytes = 3000, kHugeBytes = 4 << 20 };

static sigjmp_buf back;
static char* guard;

static void on_fault(int signal, siginfo_t* info, void* context) {
  (void)signal;
  (void)context;
  VICTIM_CHECK((char*)info->si_addr == guard + 123 && info->si_code == SEGV_ACCERR,
               "a fault at %p, code %d", info->si_addr, info->si_code);
  siglongjmp(back, 1);
}

static uint64_t descend(int depth, uint64_t seed) {
  volatile uint64_t frame[kFrameBytes / 8];
  for (size_t i = 0; i < kFrameBytes / 8; i++) {
    frame[i] = seed + i;
  }
  uint64_t deepest = depth > 0 ? descend(depth - 1, seed * 31 + 7) : 0;
  for (size_t i = 0; i < kFrameBytes / 8; i++) {
    VICTIM_CHECK(frame[i] == seed + i, "the stack changed at depth %d, word %zu", depth, i);
  }
  return deepest + 1;
}

static void move_brk(uint64_t round) {
  char* start = sbrk(0);
  size_t bytes = (1 + round % 100) * kPage;
  VICTIM_CHECK(sbrk((intptr_t)bytes) == start, "sbrk up");
  for (size_t at = 0; at < bytes; at += kPage) {
    VICTIM_CHECK(start[at] == 0, "new heap memory at %p is not zero", start + at);
    start[at] = (char)(round + at / kPage + 1);
  }
  victim_pace();
  for (size_t at = 0; at < bytes; at += kPage) {
    VICTIM_CHECK(start[at] == (char)(round + at / kPage + 1), "the heap changed at %p", start + at);
  }
  VICTIM_CHECK(sbrk(-(intptr_t)bytes) == start + bytes, "sbrk down");
}

static void check_guard(void) {
  if (sigsetjmp(back, 1) == 0) {
    *(volatile char*)(guard + 123) = 1;
    victim_fail("the guard can be written");
  }
}

static void check_huge(char* huge, uint64_t round) {
  uint64_t* words = (uint64_t*)huge;
  size_t count = kHugeBytes / 8;
  if (round % 50 == 0) {
    madvise(huge, kHugeBytes, MADV_DONTNEED);
    for (size_t i = 0; i < count; i += 512) {
      words[i] = round + i;
    }
    atomic_store(&victim_status->counters[0], round);
  }
  uint64_t written = atomic_load(&victim_status->counters[0]);
  for (size_t i = 0; i < count; i += 512) {
    VICTIM_CHECK(words[i] == written + i, "a huge page changed at %p", (void*)&words[i]);
  }
}

int main(int argc, char** argv) {
  victim_start(argc, argv);
  guard = mmap(NULL, kPage, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  char* huge =
      mmap(NULL, 2 * kHugeBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  huge = (char*)(((uintptr_t)huge + kHugeBytes - 1) & ~(uintptr_t)(kHugeBytes - 1));
  madvise(huge, kHugeBytes, MADV_HUGEPAGE);
  struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO};
  sigaction(SIGSEGV, &action, NULL);
  sbrk(kPage);
  victim_ready();
  for (uint64_t round = 0;; round++) {
    int depth = (int)(round % 400);
    VICTIM_CHECK(descend(depth, round) == (uint64_t)depth + 1, "recursion");
    move_brk(round);
    check_guard();
    check_huge(huge, round);
    victim_round();
  }
}
