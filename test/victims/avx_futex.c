// Eight threads that pass a token round by futexes. Each holder computes a step of a chain in
// vector registers (a state that no memory backs while it runs) and a serial recomputation at the
// end of each round must agree.
#include <immintrin.h>
#include <linux/futex.h>
#include <pthread.h>

#include "victim.h"

enum { kThreads = 8, kSteps = 20000, kRoundTurns = 64 };

static _Atomic uint32_t turn;
static double chain[4];
static uint64_t steps_done;

static void wait_for_turn(int thread) {
  for (;;) {
    uint32_t now = atomic_load(&turn);
    if ((int)(now % kThreads) == thread) {
      return;
    }
    syscall(SYS_futex, &turn, FUTEX_WAIT_PRIVATE, now, NULL, NULL, 0);
  }
}

__attribute__((target("avx"))) static void advance(double* state) {
  __m256d value = _mm256_loadu_pd(state);
  const __m256d factor = _mm256_set_pd(1.0000001, 0.9999999, 1.0000003, 0.9999997);
  const __m256d addend = _mm256_set_pd(0.25, 0.5, -0.25, 0.125);
  for (int i = 0; i < kSteps; i++) {
    value = _mm256_add_pd(_mm256_mul_pd(value, factor), addend);
    __asm__ volatile("" : "+x"(value));  // kept in a register through the loop
  }
  _mm256_storeu_pd(state, value);
}

static void advance_serially(double* state) {
  static const double factors[4] = {0.9999997, 1.0000003, 0.9999999, 1.0000001};
  static const double addends[4] = {0.125, -0.25, 0.5, 0.25};
  for (int i = 0; i < kSteps; i++) {
    for (int lane = 0; lane < 4; lane++) {
      volatile double product = state[lane] * factors[lane];
      state[lane] = product + addends[lane];
    }
  }
}

static void* pass_on(void* argument) {
  int thread = (int)(intptr_t)argument;
  for (;;) {
    wait_for_turn(thread);
    advance(chain);
    steps_done++;
    atomic_fetch_add(&victim_status->counters[thread], 1);
    if (steps_done % kRoundTurns == 0) {
      static double serial[4];
      for (int i = 0; i < kRoundTurns; i++) {
        advance_serially(serial);
      }
      VICTIM_CHECK(memcmp(serial, chain, sizeof chain) == 0, "the chain broke at step %lu",
                   steps_done);
      victim_round();
    }
    atomic_fetch_add(&turn, 1);
    syscall(SYS_futex, &turn, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
  }
  return NULL;
}

int main(int argc, char** argv) {
  victim_start(argc, argv);
  if (!__builtin_cpu_supports("avx")) {
    victim_skip("this machine has no AVX");
  }
  victim_ready();
  pthread_t thread;
  for (intptr_t i = 0; i < kThreads; i++) {
    VICTIM_CHECK(pthread_create(&thread, NULL, pass_on, (void*)i) == 0, "no thread");
  }
  for (;;) {
    pause();
  }
}
