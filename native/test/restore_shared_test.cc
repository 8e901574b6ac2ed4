// Replicas that share memory, and map files.
#include <sys/shm.h>

#include <atomic>
#include <cstring>

#include "test/followed.h"

namespace replpage::testing {

TEST(replica_shares_what_its_primary_shared) {
  ReportFile report;
  const int segment = ::shmget(IPC_PRIVATE, 1 << 20, IPC_CREAT | 0600);
  CHECK(segment >= 0);
  auto followed = std::make_unique<Followed>([&](const std::function<void()>& ready) {
    Report* mine = report.map();
    void* at = ::mmap(nullptr, 1 << 20, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    auto* shared = static_cast<std::atomic<uint64_t>*>(at);
    auto* sysv = static_cast<std::atomic<uint64_t>*>(::shmat(segment, nullptr, 0));
    fork_into([&] {
      for (;;) {
        // Adds one when the parent has.
        if (shared[0] % 2 == 1 && sysv[1] == shared[0]) {
          ++shared[0];
          ++mine->values[1];
        }
        ::usleep(300);
      }
    });
    ready();
    for (;;) {
      if (shared[0] % 2 == 0) {
        sysv[1] = shared[0] + 1;
        ++shared[0];
        ++mine->values[0];
      }
      ::usleep(300);
    }
  });
  CHECK(wait_for([&] { return report->values[1] > 3; }));
  followed->take_epoch();
  CHECK_EQUAL(followed->image.shared_objects.size(), 1u);
  TestKeeper keeper;
  GroupImage image = followed->image;
  keeper.apply(image, followed->staging);
  end(followed, report);
  const uint64_t before = report->values[1];
  keeper.promote(image);
  CHECK(wait_for([&] { return report->values[1] > before + 3; }));
  ::shmctl(segment, IPC_RMID, nullptr);
}

TEST(replica_maps_files_without_a_name) {
  ReportFile report;
  auto followed = std::make_unique<Followed>([&](const std::function<void()>& ready) {
    Report* mine = report.map();
    const std::string path = "/dev/shm/replpage-unnamed-" + std::to_string(::getpid());
    const int fd = ::open(path.c_str(), O_RDWR | O_CREAT, 0600);
    if (fd < 0 || ::ftruncate(fd, 8192) != 0 || ::pwrite(fd, "abc", 3, 0) != 3) ::_exit(9);
    auto* shared = static_cast<std::atomic<uint64_t>*>(
        ::mmap(nullptr, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 4096));
    const auto* own =
        static_cast<const char*>(::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0));
    ::close(fd);
    ::unlink(path.c_str());
    ready();
    for (;;) {
      const uint64_t before = shared[0]++;
      if (std::memcmp(own, "abc", 4) != 0 || shared[0] != before + 1) ++mine->errors;
      ++mine->rounds;
      ::usleep(500);
    }
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
  CHECK_EQUAL(report->errors.load(), 0u);
}

}  // namespace replpage::testing
