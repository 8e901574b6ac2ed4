#include "test/state_victim.h"

#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <stdexcept>

#include "core/base/clock.h"
#include "core/base/sys_error.h"

namespace replpage::testing {
namespace {

constexpr uint64_t kFreezeDeadlineUs = 2'000'000;

}  // namespace

StateVictim::StateVictim(const Body& body) {
  int announcements[2];
  if (::pipe(announcements) != 0) throw SysError::from_errno("pipe");
  std::fflush(stdout);
  pid_ = ::fork();
  if (pid_ == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    ::close(announcements[0]);
    try {
      body([&announcements] {
        if (::write(announcements[1], "r", 1) != 1) ::_exit(2);
        ::close(announcements[1]);
      });
    } catch (const std::exception& error) {
      std::printf("# victim: %s\n", error.what());
      std::fflush(stdout);
    }
    ::_exit(1);
  }
  ::close(announcements[1]);
  char ready = 0;
  const ssize_t got = ::read(announcements[0], &ready, 1);
  ::close(announcements[0]);
  if (got != 1) {
    ::waitpid(pid_, nullptr, 0);
    throw std::runtime_error("the victim ended before it was ready");
  }
  ::usleep(20'000);  // it goes to sleep
}

StateVictim::~StateVictim() {
  // In this order: let go alive it would run on for a moment.
  ::kill(pid_, SIGKILL);
  const uint64_t deadline = now_ns() + kFreezeDeadlineUs * 1000;
  while (tree_ && tree_->processes().contains(pid_) && now_ns() < deadline) {
    tree_->wait_events(now_ns() + 1'000'000);
  }
  tree_.reset();
  ::waitpid(pid_, nullptr, 0);
}

Inject StateVictim::inject() {
  return [this](pid_t tid, long number, std::array<uint64_t, 6> arguments,
                std::vector<uint8_t>* data) { return tree_->inject(tid, number, arguments, data); };
}

void StateVictim::stop() {
  if (!tree_) {
    tree_ = std::make_unique<TraceTree>(static_cast<TraceObserver&>(*this));
    tree_->seize(pid_, false);
  }
  const FreezeResult result = tree_->freeze(kFreezeDeadlineUs);
  if (!result.frozen) throw std::runtime_error("not frozen: " + result.reason);
}

ProcessImage StateVictim::capture(bool with_injection, const ProcessImage* previous,
                                  bool slow_state) {
  ProcessCaptureInput input{.host_pid = pid_,
                            .host_tids = {pid_},
                            .previous = previous,
                            .slow_state = slow_state,
                            .inject = with_injection ? inject() : Inject(),
                            .kernel_reader = kernel_reader_};
  for (const auto& [tid, thread] : tree_->processes().at(pid_).threads) {
    if (tid != pid_) input.host_tids.push_back(tid);
  }
  auto image = capture_process(input);
  if (!image) throw std::runtime_error("the victim is gone");
  return std::move(*image);
}

}  // namespace replpage::testing
