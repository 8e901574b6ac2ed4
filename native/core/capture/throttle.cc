#include "core/capture/throttle.h"

#include <chrono>
#include <exception>

#include "core/base/clock.h"

namespace replpage {
namespace {

constexpr uint64_t kStopShare = 4;  // of this and one
// In all: a copy that hangs, as on a disk, must not keep it slow.
constexpr uint64_t kStoodUsMax = 3'000'000;

}  // namespace

Throttle::Throttle(GroupContext& context, GroupFreezer& freezer, TracerThread& tracer,
                   uint64_t stop_us)
    : thread_([this, &context, &freezer, &tracer, stop_us] {
        run(context, freezer, tracer, stop_us);
      }) {}

Throttle::~Throttle() {
  {
    const std::lock_guard lock(shared_->mutex);
    shared_->over = true;
    shared_->changed.notify_all();
  }
  thread_.join();
}

void Throttle::run(GroupContext& context, GroupFreezer& freezer, TracerThread& tracer,
                   uint64_t stop_us) {
  const auto stand_still = [&context, &freezer, stop_us, shared = shared_] {
    const uint64_t began = now_us();
    std::unique_lock lock(shared->mutex);
    try {
      if (!shared->over) {
        freezer.while_stopped(context.options.freeze_deadline_us, [&] {
          shared->changed.wait_for(lock, std::chrono::microseconds(stop_us),
                                   [&] { return shared->over; });
        });
      }
    } catch (const std::exception&) {  // the epoch itself will find out
    }
    shared->stood_us += now_us() - began;
    shared->stopping = false;
    shared->changed.notify_all();
  };
  std::unique_lock lock(shared_->mutex);
  while (!shared_->over && shared_->stood_us < kStoodUsMax) {
    shared_->stopping = true;
    tracer.post(stand_still);
    shared_->changed.wait(lock, [this] { return shared_->over || !shared_->stopping; });
    shared_->changed.wait_for(lock, std::chrono::microseconds(stop_us / kStopShare),
                              [this] { return shared_->over; });
  }
}

}  // namespace replpage
