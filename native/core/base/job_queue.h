// Closures handed from one thread to another, in order.
#pragma once

#include <condition_variable>
#include <deque>
#include <exception>
#include <functional>
#include <future>
#include <mutex>
#include <type_traits>

namespace replpage {

class JobQueue {
 public:
  using Job = std::function<void()>;

  // `on_post` is called after each post, to wake whoever runs the jobs.
  explicit JobQueue(std::function<void()> on_post = {}) : on_post_(std::move(on_post)) {}

  void post(Job job) {
    {
      const std::lock_guard lock(mutex_);
      jobs_.push_back(std::move(job));
    }
    ready_.notify_one();
    if (on_post_) on_post_();
  }

  // Runs `work` on the other thread and waits for it; its exception comes back to the caller.
  template <class Work>
  auto call(Work work) -> std::invoke_result_t<Work> {
    std::packaged_task<std::invoke_result_t<Work>()> task(std::move(work));
    auto result = task.get_future();
    post([&task] { task(); });
    return result.get();
  }

  // Sleeps until something is posted.
  void wait() {
    std::unique_lock lock(mutex_);
    ready_.wait(lock, [this] { return closed_ || !jobs_.empty(); });
  }

  // Runs everything that is queued now. For threads that have a loop of their own.
  void run_pending() {
    for (;;) {
      Job job;
      {
        const std::lock_guard lock(mutex_);
        if (jobs_.empty()) return;
        job = std::move(jobs_.front());
        jobs_.pop_front();
      }
      job();
    }
  }

  // Runs jobs until close(); what was posted before close() is still run.
  void run_until_closed() {
    for (;;) {
      Job job;
      {
        std::unique_lock lock(mutex_);
        ready_.wait(lock, [this] { return closed_ || !jobs_.empty(); });
        if (jobs_.empty()) return;
        job = std::move(jobs_.front());
        jobs_.pop_front();
      }
      job();
    }
  }

  void close() {
    {
      const std::lock_guard lock(mutex_);
      closed_ = true;
    }
    ready_.notify_all();
  }

 private:
  std::function<void()> on_post_;
  std::mutex mutex_;
  std::condition_variable ready_;
  std::deque<Job> jobs_;
  bool closed_ = false;
};

}  // namespace replpage
