// Threads that come and go all the time. Every third one dies holding a robust mutex, whose next
// owner must learn that; pthread_join depends on the kernel clearing the tid address.
#include <pthread.h>

#include "victim.h"

enum { kThreads = 4 };

static pthread_mutex_t mutex;
static uint64_t results[kThreads];

static void* work(void* argument) {
  int slot = (int)(intptr_t)argument;
  results[slot] = (uint64_t)gettid() * 3 + (uint64_t)slot;
  if (slot == 2) {
    int locked = pthread_mutex_lock(&mutex);
    if (locked == EOWNERDEAD) {
      pthread_mutex_consistent(&mutex);
    } else {
      VICTIM_CHECK(locked == 0, "robust mutex: %s", strerror(locked));
    }
    return (void*)(intptr_t)gettid();  // still holding it
  }
  return (void*)(intptr_t)gettid();
}

static void check_owner_died(void) {
  int locked = pthread_mutex_lock(&mutex);
  VICTIM_CHECK(locked == EOWNERDEAD, "the dead owner of a robust mutex went unnoticed: %s",
               strerror(locked));
  pthread_mutex_consistent(&mutex);
  pthread_mutex_unlock(&mutex);
}

int main(int argc, char** argv) {
  victim_start(argc, argv);
  pthread_mutexattr_t attributes;
  pthread_mutexattr_init(&attributes);
  pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
  pthread_mutex_init(&mutex, &attributes);
  victim_ready();
  for (;;) {
    pthread_t threads[kThreads];
    for (intptr_t i = 0; i < kThreads; i++) {
      int error = pthread_create(&threads[i], NULL, work, (void*)i);
      VICTIM_CHECK(error == 0, "pthread_create: %s", strerror(error));
    }
    for (int i = 0; i < kThreads; i++) {
      void* tid = NULL;
      VICTIM_CHECK(pthread_join(threads[i], &tid) == 0, "pthread_join");
      VICTIM_CHECK(results[i] == (uint64_t)(intptr_t)tid * 3 + (uint64_t)i,
                   "thread in slot %d left %lu", i, results[i]);
    }
    check_owner_died();
    victim_round();
    if (argc > 2) {
      usleep(40000);  // slow enough for each thread to be followed
    }
  }
}
