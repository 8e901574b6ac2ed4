// Four threads that hold known values in every register a program can see (general, x87, YMM, ZMM
// and mask registers where the machine has them, MXCSR, the x87 control word, FS and GS base)
// through long spins, and compare them after each.
#include <asm/prctl.h>
#include <pthread.h>

#include "victim.h"

enum { kThreads = 4, kGeneral = 12, kSpins = 1 << 19 };

struct Block {
  uint64_t general_in[kGeneral];   // offset 0
  uint64_t general_out[kGeneral];  // 96
  uint64_t spins;                  // 192
  uint64_t unused[7];              // 200
  uint8_t vector_in[32 * 64];      // 256
  uint8_t vector_out[32 * 64];     // 2304
  uint64_t mask_in[8];             // 4352
  uint64_t mask_out[8];            // 4416
} __attribute__((aligned(64)));

void hold_avx(struct Block* block);
void hold_avx512(struct Block* block);

// The registers named here, and rdi (the block) and rcx (the spins), are live in the loop.
__asm__(
    ".macro load_general\n"
    "push %rbx\n push %rbp\n push %r12\n push %r13\n push %r14\n push %r15\n"
    "mov 0(%rdi),%rax\n mov 8(%rdi),%rbx\n mov 16(%rdi),%rdx\n mov 24(%rdi),%rsi\n"
    "mov 32(%rdi),%rbp\n mov 40(%rdi),%r8\n mov 48(%rdi),%r9\n mov 56(%rdi),%r10\n"
    "mov 64(%rdi),%r12\n mov 72(%rdi),%r13\n mov 80(%rdi),%r14\n mov 88(%rdi),%r15\n"
    "mov 192(%rdi),%rcx\n"
    ".endm\n"
    ".macro store_general\n"
    "mov %rax,96(%rdi)\n mov %rbx,104(%rdi)\n mov %rdx,112(%rdi)\n mov %rsi,120(%rdi)\n"
    "mov %rbp,128(%rdi)\n mov %r8,136(%rdi)\n mov %r9,144(%rdi)\n mov %r10,152(%rdi)\n"
    "mov %r12,160(%rdi)\n mov %r13,168(%rdi)\n mov %r14,176(%rdi)\n mov %r15,184(%rdi)\n"
    "pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbp\n pop %rbx\n"
    ".endm\n"
    ".text\n"
    ".globl hold_avx\n"
    "hold_avx:\n"
    "load_general\n"
    ".irp i,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n"
    "vmovdqu 256+64*\\i(%rdi),%ymm\\i\n"
    ".endr\n"
    "1: dec %rcx\n jnz 1b\n"
    ".irp i,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n"
    "vmovdqu %ymm\\i,2304+64*\\i(%rdi)\n"
    ".endr\n"
    "store_general\n"
    "vzeroupper\n ret\n"
    ".globl hold_avx512\n"
    "hold_avx512:\n"
    "load_general\n"
    ".irp i,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31\n"
    "vmovdqu64 256+64*\\i(%rdi),%zmm\\i\n"
    ".endr\n"
    ".irp i,0,1,2,3,4,5,6,7\n"
    "kmovq 4352+8*\\i(%rdi),%k\\i\n"
    ".endr\n"
    "1: dec %rcx\n jnz 1b\n"
    ".irp i,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31\n"
    "vmovdqu64 %zmm\\i,2304+64*\\i(%rdi)\n"
    ".endr\n"
    ".irp i,0,1,2,3,4,5,6,7\n"
    "kmovq %k\\i,4416+8*\\i(%rdi)\n"
    ".endr\n"
    "store_general\n"
    "vzeroupper\n ret\n");

static bool have_avx512;
static __thread uint64_t thread_local_value;

static void compare(int thread, const struct Block* block) {
  for (int i = 0; i < kGeneral; i++) {
    VICTIM_CHECK(block->general_in[i] == block->general_out[i],
                 "thread %d: general register %d is %#lx, not %#lx", thread, i,
                 block->general_out[i], block->general_in[i]);
  }
  int vectors = have_avx512 ? 32 : 16;
  size_t bytes = have_avx512 ? 64 : 32;
  for (int i = 0; i < vectors; i++) {
    VICTIM_CHECK(memcmp(block->vector_in + 64 * i, block->vector_out + 64 * i, bytes) == 0,
                 "thread %d: vector register %d changed", thread, i);
  }
  for (int i = 0; have_avx512 && i < 8; i++) {
    VICTIM_CHECK(block->mask_in[i] == block->mask_out[i], "thread %d: mask register k%d changed",
                 thread, i);
  }
}

static void hold_x87(int thread) {
  double pushed[8];
  double popped[8];
  for (int i = 0; i < 8; i++) {
    pushed[i] = thread * 100.5 + i;
  }
  __asm__ volatile(
      "fldl 0(%0)\n fldl 8(%0)\n fldl 16(%0)\n fldl 24(%0)\n"
      "fldl 32(%0)\n fldl 40(%0)\n fldl 48(%0)\n fldl 56(%0)\n"
      "mov $100000,%%ecx\n 1: dec %%ecx\n jnz 1b\n"
      "fstpl 56(%1)\n fstpl 48(%1)\n fstpl 40(%1)\n fstpl 32(%1)\n"
      "fstpl 24(%1)\n fstpl 16(%1)\n fstpl 8(%1)\n fstpl 0(%1)\n"
      :
      : "r"(pushed), "r"(popped)
      : "ecx", "memory", "cc");
  for (int i = 0; i < 8; i++) {
    VICTIM_CHECK(pushed[i] == popped[i], "thread %d: x87 register %d changed", thread, i);
  }
}

static void check_bases(int thread, const uint64_t* gs_block, uint64_t fs_base) {
  uint64_t first;
  uint64_t base = 0;
  __asm__ volatile("mov %%gs:0,%0" : "=r"(first));
  VICTIM_CHECK(first == gs_block[0], "thread %d: %%gs:0 reads %#lx", thread, first);
  syscall(SYS_arch_prctl, ARCH_GET_GS, &base);
  VICTIM_CHECK(base == (uint64_t)gs_block, "thread %d: the GS base is %#lx", thread, base);
  syscall(SYS_arch_prctl, ARCH_GET_FS, &base);
  VICTIM_CHECK(base == fs_base, "thread %d: the FS base is %#lx, not %#lx", thread, base, fs_base);
}

static void* hold(void* argument) {
  int thread = (int)(intptr_t)argument;
  uint64_t random = 0x9e3779b97f4a7c15u * (thread + 1);
  uint64_t gs_block[2] = {0x6753000000000000u + thread, 0};
  uint64_t fs_base = 0;
  uint32_t mxcsr = 0x1f80 | (uint32_t)thread << 13;  // a rounding mode of its own
  uint16_t control = 0x037f & ~0x0300;
  control |= (uint16_t)(thread << 10);
  static struct Block blocks[kThreads];
  struct Block* block = &blocks[thread];

  syscall(SYS_arch_prctl, ARCH_SET_GS, gs_block);
  syscall(SYS_arch_prctl, ARCH_GET_FS, &fs_base);
  __asm__ volatile("ldmxcsr %0\n fldcw %1" : : "m"(mxcsr), "m"(control));
  thread_local_value = random;
  uint64_t kept = random;
  for (;;) {
    for (size_t i = 0; i < kGeneral; i++) {
      block->general_in[i] = victim_random(&random);
    }
    for (size_t i = 0; i < sizeof block->vector_in; i += 8) {
      uint64_t value = victim_random(&random);
      memcpy(block->vector_in + i, &value, 8);
    }
    for (int i = 0; i < 8; i++) {
      block->mask_in[i] = victim_random(&random);
    }
    block->spins = kSpins;
    (have_avx512 ? hold_avx512 : hold_avx)(block);
    compare(thread, block);
    hold_x87(thread);
    check_bases(thread, gs_block, fs_base);
    VICTIM_CHECK(thread_local_value == kept, "thread %d: a thread-local value changed", thread);
    uint32_t mxcsr_now;
    uint16_t control_now;
    __asm__ volatile("stmxcsr %0\n fnstcw %1" : "=m"(mxcsr_now), "=m"(control_now));
    VICTIM_CHECK((mxcsr_now & ~0x3fu) == mxcsr, "thread %d: MXCSR is %#x, not %#x", thread,
                 mxcsr_now, mxcsr);
    VICTIM_CHECK(control_now == control, "thread %d: the x87 control word is %#x, not %#x", thread,
                 control_now, control);
    atomic_fetch_add(&victim_status->counters[thread], 1);
  }
  return NULL;
}

int main(int argc, char** argv) {
  static const char* const names[] = {"thread 0", "thread 1", "thread 2", "thread 3"};
  victim_start(argc, argv);
  if (!__builtin_cpu_supports("avx")) {
    victim_skip("this machine has no AVX");
  }
  have_avx512 = __builtin_cpu_supports("avx512bw");
  for (intptr_t i = 0; i < kThreads; i++) {
    pthread_t thread;
    VICTIM_CHECK(pthread_create(&thread, NULL, hold, (void*)i) == 0, "no thread");
  }
  victim_ready();
  for (;;) {
    victim_rounds_of_counters(names, kThreads);
  }
}
