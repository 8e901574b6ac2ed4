// A thread that runs only when nobody else wants to: last in line for CPUs and disks.
//
// Only that thread: the one that reads the primary's memory holds locks of it meanwhile, and must
// not be kept waiting with them.
#pragma once

#include <condition_variable>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>

namespace replpage {

class IdleWorker {
 public:
  IdleWorker();
  ~IdleWorker();
  IdleWorker(const IdleWorker&) = delete;
  IdleWorker& operator=(const IdleWorker&) = delete;

  // Returns when the work is done; throws what it threw.
  void run(const std::function<void()>& work);

 private:
  void serve();

  std::mutex mutex_;
  std::condition_variable changed_;
  const std::function<void()>* work_ = nullptr;
  std::exception_ptr failure_;
  bool quit_ = false;
  std::thread thread_;
};

}  // namespace replpage
