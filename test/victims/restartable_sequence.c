// Restartable sequences (rseq(2)): four threads mark the place of the processor they run on and see
// that nobody else marks it while they have not been preempted. A thread that goes on inside its
// sequence after it has lost the processor, without the abort, finds another's mark. The threads
// are inside one nearly all the time.
#include <linux/rseq.h>
#include <pthread.h>
#include <sys/rseq.h>

#include "victim.h"

enum { kThreads = 4, kProcessors = 8192, kSpins = 1 << 15 };
enum { kKept = 0, kLost = 1, kAborted = 2 };

// rdi: struct rseq, rsi: marks, 8 bytes a processor, rdx: this thread's mark, rcx: spins.
int hold_mark(struct rseq* area, uint64_t* marks, uint64_t mark, uint64_t spins);
__asm__(
    ".data\n.balign 32\n"
    "sequence: .long 0, 0\n .quad 1f, 2f - 1f, 4f\n"
    ".text\n"
    ".globl hold_mark\n"
    "hold_mark: lea sequence(%rip),%rax\n mov %rax,8(%rdi)\n"
    "1: mov 4(%rdi),%eax\n lea (%rsi,%rax,8),%r8\n mov %rdx,(%r8)\n"
    "3: cmp %rdx,(%r8)\n jne 5f\n dec %rcx\n jnz 3b\n"
    "2: movq $0,8(%rdi)\n xor %eax,%eax\n ret\n"
    "5: mov $1,%eax\n ret\n"
    ".byte 0x0f, 0xb9, 0x3d\n .long 0x53053053\n"  // RSEQ_SIG
    "4: mov $2,%eax\n ret\n");

static uint64_t marks[kProcessors];

static void* run(void* argument) {
  const uint64_t thread = (uintptr_t)argument;
  struct rseq* area = (struct rseq*)((char*)__builtin_thread_pointer() + __rseq_offset);
  for (uint64_t turn = 0;; turn++) {
    const int outcome = hold_mark(area, marks, turn * kThreads + thread + 1, kSpins);
    VICTIM_CHECK(outcome != kLost, "thread %d went on in a sequence that was to be aborted",
                 (int)thread);
    if (outcome == kKept) atomic_fetch_add(&victim_status->counters[thread], 1);
  }
}

static void* count_rounds(void* unused) {
  static const char* const names[] = {"thread 0", "thread 1", "thread 2", "thread 3"};
  for (;;) victim_rounds_of_counters(names, kThreads);
  return unused;
}

// The main thread is one of them: a replica prepares it in another way.
int main(int argc, char** argv) {
  pthread_t thread;
  victim_start(argc, argv);
  if (__rseq_size == 0) victim_skip("the C library has no rseq");
  for (uintptr_t i = 1; i < kThreads; i++) {
    VICTIM_CHECK(pthread_create(&thread, NULL, run, (void*)i) == 0, "no thread");
  }
  VICTIM_CHECK(pthread_create(&thread, NULL, count_rounds, NULL) == 0, "no thread");
  victim_ready();
  run(NULL);
}
