// Clocks read through the vdso: monotonic ones never go back, boot time and monotonic time keep
// their distance, and processor numbers are real.
#include <sched.h>

#include "victim.h"

int main(int argc, char** argv) {
  victim_start(argc, argv);
  static const clockid_t clocks[] = {CLOCK_MONOTONIC, CLOCK_MONOTONIC_RAW, CLOCK_BOOTTIME,
                                     CLOCK_MONOTONIC_COARSE, CLOCK_REALTIME};
  enum { kClocks = sizeof clocks / sizeof clocks[0] };
  int64_t last[kClocks] = {0};
  int64_t distance = 0;
  victim_ready();
  for (uint64_t round = 0;; round++) {
    int64_t now[kClocks];
    for (int i = 0; i < kClocks; i++) {
      struct timespec value;
      VICTIM_CHECK(clock_gettime(clocks[i], &value) == 0, "clock %d", clocks[i]);
      now[i] = (int64_t)value.tv_sec * 1000000000 + value.tv_nsec;
      VICTIM_CHECK(now[i] >= last[i] || clocks[i] == CLOCK_REALTIME, "clock %d went back by %ld ns",
                   clocks[i], last[i] - now[i]);
      last[i] = now[i];
    }
    // Only a suspended machine moves the two apart; a stop between the two reads shows as a jump.
    int64_t apart = now[2] - now[0];
    if (round == 0) {
      distance = apart;
    }
    VICTIM_CHECK(apart - distance < 60000000000, "boot time ran away by %ld ns", apart - distance);
    VICTIM_CHECK(sched_getcpu() >= 0 && sched_getcpu() < 4096, "processor %d", sched_getcpu());
    victim_round();
    if (round % 256 == 0) {
      victim_pace();
    }
  }
}
