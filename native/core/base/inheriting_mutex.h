// A mutex whose holder runs as urgently as the most urgent thread that waits for it
// (PTHREAD_PRIO_INHERIT): a thread that gives way to others does not hold up one that goes first.
// To be used as std::mutex is.
#pragma once

#include <pthread.h>

#include <cerrno>

#include "core/base/sys_error.h"

namespace replpage {

class InheritingMutex {
 public:
  InheritingMutex() {
    pthread_mutexattr_t attributes;
    check(::pthread_mutexattr_init(&attributes));
    // Where a kernel has no such mutexes it is a plain one.
    (void)::pthread_mutexattr_setprotocol(&attributes, PTHREAD_PRIO_INHERIT);
    const int error = ::pthread_mutex_init(&mutex_, &attributes);
    ::pthread_mutexattr_destroy(&attributes);
    if (error != 0) check(::pthread_mutex_init(&mutex_, nullptr));
  }
  ~InheritingMutex() { ::pthread_mutex_destroy(&mutex_); }
  InheritingMutex(const InheritingMutex&) = delete;
  InheritingMutex& operator=(const InheritingMutex&) = delete;

  void lock() { check(::pthread_mutex_lock(&mutex_)); }
  void unlock() { ::pthread_mutex_unlock(&mutex_); }
  bool try_lock() {
    const int error = ::pthread_mutex_trylock(&mutex_);
    if (error != EBUSY) check(error);
    return error == 0;
  }

 private:
  static void check(int error) {
    if (error != 0) throw SysError("mutex", error);
  }
  pthread_mutex_t mutex_{};
};

}  // namespace replpage
