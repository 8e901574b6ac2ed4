// What the measured programs have in common: counters in a page that a watcher maps, no checks.
#ifndef REPLPAGE_BENCH_BENCH_H_
#define REPLPAGE_BENCH_BENCH_H_

#include <fcntl.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { kPageBytes = 4096 };

// Maps the page of counters (argv[1]) or ends.
static inline _Atomic uint64_t* bench_counters(int argc, char** argv) {
  int fd = argc > 1 ? open(argv[1], O_RDWR | O_CREAT | O_CLOEXEC, 0666) : -1;
  if (fd < 0 || ftruncate(fd, kPageBytes) != 0) {
    fprintf(stderr, "usage: %s COUNTERS [ARGUMENT ...]\n", argv[0]);
    exit(2);
  }
  void* page = mmap(NULL, kPageBytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (page == MAP_FAILED) {
    perror("mmap");
    exit(2);
  }
  close(fd);
  return page;
}

static inline uint64_t bench_now_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

#endif  // REPLPAGE_BENCH_BENCH_H_
