// A large table (MiB as second argument, default 64) that several threads (third argument, default
// 2) rewrite at random as fast as asked (pages a second each, fourth argument, default 20000; 0 is
// none), each in pages of its own: every page knows its number and its version.
#include <pthread.h>

#include "victim.h"

enum { kMaxThreads = 64 };

static char* table;
static size_t pages;
static int threads = 2;
static uint64_t rate = 20000;
static uint32_t* versions;

static void check_page(size_t page) {
  uint64_t* words = (uint64_t*)(table + page * kPage);
  uint64_t version = versions[page];
  VICTIM_CHECK(words[0] == page && words[1] == version && words[511] == (version ^ page),
               "page %zu version %lu: %#lx %#lx %#lx", page, version, words[0], words[1],
               words[511]);
}

static void write_page(size_t page, uint32_t version) {
  uint64_t* words = (uint64_t*)(table + page * kPage);
  words[0] = page;
  words[1] = version;
  words[511] = version ^ page;
  __atomic_store_n(&versions[page], version, __ATOMIC_RELEASE);
}

static void* rewrite(void* argument) {
  size_t own = (size_t)(intptr_t)argument;
  uint64_t random = 88172645463325252u + own;
  uint64_t start = victim_now_ns();
  for (uint64_t done = 0;; done++) {
    size_t page = victim_random(&random) % (pages / (size_t)threads) * (size_t)threads + own;
    check_page(page);
    if (rate > 0) {
      write_page(page, versions[page] + 1);
      while (done > (victim_now_ns() - start) * rate / 1000000000u) {
        victim_pace();
      }
    } else if (done % 1024 == 0) {
      victim_pace();
    }
    atomic_fetch_add_explicit(&victim_status->counters[own], 1, memory_order_relaxed);
  }
  return NULL;
}

int main(int argc, char** argv) {
  victim_start(argc, argv);
  size_t mib = argc > 2 ? strtoul(argv[2], NULL, 10) : 64;
  threads = argc > 3 ? atoi(argv[3]) : 2;
  threads = threads < 1 ? 1 : threads > kMaxThreads ? kMaxThreads : threads;
  rate = argc > 4 ? strtoull(argv[4], NULL, 10) : 20000;
  pages = mib * 256;
  table = mmap(NULL, pages * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  versions = calloc(pages, sizeof *versions);
  VICTIM_CHECK(table != MAP_FAILED && versions != NULL, "no memory");
  for (size_t page = 0; page < pages; page++) {
    write_page(page, 1);
  }
  static char names[kMaxThreads][16];
  static const char* pointers[kMaxThreads];
  for (intptr_t i = 0; i < threads; i++) {
    snprintf(names[i], sizeof names[i], "thread %d", (int)i);
    pointers[i] = names[i];
    pthread_t thread;
    VICTIM_CHECK(pthread_create(&thread, NULL, rewrite, (void*)i) == 0, "no thread");
  }
  victim_ready();
  for (;;) {
    victim_rounds_of_counters(pointers, threads);
  }
}
