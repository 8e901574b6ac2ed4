// Copies memory into fresh memory, as a plain program does: copy MIB. Prints microseconds.
#include <string.h>

#include "bench.h"

int main(int argc, char** argv) {
  size_t bytes = (argc > 1 ? strtoul(argv[1], NULL, 10) : 256) << 20;
  int flags = MAP_PRIVATE | MAP_ANONYMOUS;
  char* from = mmap(NULL, bytes, PROT_READ | PROT_WRITE, flags, -1, 0);
  char* to = mmap(NULL, bytes, PROT_READ | PROT_WRITE, flags, -1, 0);
  if (from == MAP_FAILED || to == MAP_FAILED) {
    return 1;
  }
  for (size_t at = 0; at < bytes; at += 8) {
    *(uint64_t*)(from + at) = at * 0x9e3779b97f4a7c15u;
  }
  uint64_t start = bench_now_ns();
  memcpy(to, from, bytes);
  uint64_t took = bench_now_ns() - start;
  printf("%lu\n", took / 1000);
  return to[bytes / 2] == from[bytes / 2] ? 0 : 1;
}
