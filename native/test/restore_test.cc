// Replicas of processes with one thread and with many.
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>

#include "test/followed.h"
#include "test/map_text.h"

namespace replpage::testing {

TEST(replica_of_a_single_process_runs_on) {
  ReportFile report;
  auto followed = std::make_unique<Followed>([&](const std::function<void()>& ready) {
    Report* mine = report.map();
    uint64_t* words = new_memory(kWords * 8);
    fill(words, kWords, 7);
    ready();
    self_check_loop(mine, words, 7);
  });
  CHECK(wait_for([&] { return report->rounds > 3; }));
  followed->take_epoch();
  const pid_t pid = followed->victim.pid();
  TestKeeper keeper;
  GroupImage image = followed->image;
  const KeeperAnswer built = keeper.apply(image, followed->staging);
  CHECK(built.resident_bytes >= kWords * 8);
  followed.reset();
  const uint64_t before = report->rounds;
  report->pid = 0;
  const KeeperAnswer promoted = keeper.promote(image);
  note("promoted in " + std::to_string(promoted.took_us) + " us");
  CHECK(wait_for([&] { return report->rounds > before + 5; }));
  CHECK_EQUAL(report->errors.load(), 0u);
  CHECK_EQUAL(report->pid.load(), pid);
}

TEST(replica_of_a_single_process_has_its_mappings) {
  ReportFile report;
  auto followed = std::make_unique<Followed>([&](const std::function<void()>& ready) {
    Report* mine = report.map();
    uint64_t* words = new_memory(kWords * 8);
    fill(words, kWords, 7);
    new_memory(3 << 20, PROT_NONE, MAP_NORESERVE);
    new_memory(1 << 20, PROT_READ | PROT_WRITE, MAP_GROWSDOWN | MAP_STACK);
    ready();
    self_check_loop(mine, words, 7);
  });
  CHECK(wait_for([&] { return report->rounds > 3; }));
  followed->take_epoch();
  TestKeeper keeper;
  GroupImage image = followed->image;
  keeper.apply(image, followed->staging);
  followed.reset();
  const uint64_t before = report->rounds;
  keeper.promote(image);
  CHECK(wait_for([&] { return report->rounds > before + 5; }));
  CHECK_EQUAL(maps_of_text(keeper.maps(image.processes[0].pid)), maps_of_image(image.processes[0]));
}

namespace {

struct PingPong {
  std::mutex mutex;
  std::condition_variable turned;
  bool left = true;
};

void play(PingPong& game, bool left, std::atomic<uint64_t>& count) {
  for (;;) {
    std::unique_lock lock(game.mutex);
    game.turned.wait(lock, [&] { return game.left == left; });
    game.left = !left;
    ++count;
    game.turned.notify_one();
    lock.unlock();
    ::usleep(200);
  }
}

void check_thread(Report* report, std::atomic<uint64_t>& count) {
  const pid_t tid = static_cast<pid_t>(::syscall(SYS_gettid));
  thread_local uint64_t mine = 0;
  for (;;) {
    const timespec nap{.tv_sec = 0, .tv_nsec = 3'000'000};
    if (::nanosleep(&nap, nullptr) != 0) ++report->errors;
    if (::syscall(SYS_gettid) != tid) ++report->errors;
    if (++mine != ++count) ++report->errors;
  }
}

[[noreturn]] void run_threads(Report* report, const std::function<void()>& ready) {
  static PingPong game;
  std::thread([&] { play(game, true, report->values[0]); }).detach();
  std::thread([&] { play(game, false, report->values[1]); }).detach();
  std::thread([&] { check_thread(report, report->values[2]); }).detach();
  std::thread([&] {
    double x = 1;
    for (;;) {
      for (int i = 0; i < 1000; ++i) x = x * 1.0000001 + 1e-9;
      if (!(x > 0)) ++report->errors;
      if (x > 1e100) x = 1;
      ++report->values[3];
    }
  }).detach();
  ready();
  for (;;) {
    ::pause();
    ++report->errors;
  }
}

}  // namespace

TEST(replica_of_threads_runs_on) {
  ReportFile report;
  auto followed = std::make_unique<Followed>(
      [&](const std::function<void()>& ready) { run_threads(report.map(), ready); });
  CHECK(wait_for([&] { return report->values[0] > 3 && report->values[2] > 3; }));
  followed->take_epoch();
  CHECK_EQUAL(followed->image.processes[0].threads.size(), 5u);
  TestKeeper keeper;
  GroupImage image = followed->image;
  keeper.apply(image, followed->staging);
  followed.reset();
  std::array<uint64_t, 4> before{};
  for (size_t i = 0; i < 4; ++i) before[i] = report->values[i];
  const KeeperAnswer promoted = keeper.promote(image);
  note("promoted 5 threads in " + std::to_string(promoted.took_us) + " us");
  CHECK(wait_for([&] {
    for (size_t i = 0; i < 4; ++i) {
      if (report->values[i] < before[i] + 5) return false;
    }
    return true;
  }));
  CHECK_EQUAL(report->errors.load(), 0u);
}

}  // namespace replpage::testing
