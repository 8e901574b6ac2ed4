#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstring>

#include "core/base/clock.h"
#include "core/memory/memory_map.h"
#include "test/state_victim.h"
#include "test/test.h"
#include "test/test_keeper.h"

namespace replpage::testing {
namespace {

// What a victim and its replica tell the test, through a file that all of them map.
struct Report {
  std::atomic<uint64_t> rounds;
  std::atomic<uint64_t> errors;
  std::atomic<int64_t> pid;
  std::atomic<uint64_t> values[16];
};

class ReportFile {
 public:
  ReportFile() : path_("/tmp/replpage-report-" + std::to_string(::getpid())) {
    fd_ = UniqueFd(::open(path_.c_str(), O_RDWR | O_CREAT | O_TRUNC, 0600));
    CHECK(fd_.valid() && ::ftruncate(fd_.get(), 4096) == 0);
    report_ = map();
  }
  ~ReportFile() {
    ::munmap(report_, 4096);
    ::unlink(path_.c_str());
  }
  Report* map() const {
    void* at = ::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd_.get(), 0);
    CHECK(at != MAP_FAILED);
    return static_cast<Report*>(at);
  }
  Report* operator->() const { return report_; }
  void close_file() { fd_.reset(); }

 private:
  std::string path_;
  UniqueFd fd_;
  Report* report_ = nullptr;
};

template <class Condition>
bool wait_for(Condition condition, int limit_ms = 3000) {
  for (int waited = 0; waited < limit_ms; ++waited) {
    if (condition()) return true;
    ::usleep(1000);
  }
  return condition();
}

constexpr uint64_t kWords = (8u << 20) / sizeof(uint64_t);

void fill(uint64_t* words, uint64_t count, uint64_t seed) {
  for (uint64_t i = 0; i < count; ++i) words[i] = seed + i * 0x9E3779B97F4A7C15ull;
}

bool is_filled(const uint64_t* words, uint64_t count, uint64_t seed) {
  for (uint64_t i = 0; i < count; ++i) {
    if (words[i] != seed + i * 0x9E3779B97F4A7C15ull) return false;
  }
  return true;
}

uint64_t* new_memory(uint64_t bytes, int prot = PROT_READ | PROT_WRITE, int flags = 0) {
  void* at = ::mmap(nullptr, bytes, prot, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);
  if (at == MAP_FAILED) ::_exit(9);
  return static_cast<uint64_t*>(at);
}

MemoryCapture::Injector injector_of(StateVictim& victim) {
  return {.create_uffd = [&victim]() -> std::optional<long> {
            return victim.tree().inject(victim.pid(), SYS_userfaultfd,
                                        {O_CLOEXEC | O_NONBLOCK | 1});
          },
          .close_remote =
              [&victim](int fd) {
                victim.tree().inject(victim.pid(), SYS_close, {static_cast<uint64_t>(fd)});
              }};
}

// A victim that is followed epoch by epoch.
class Followed {
 public:
  explicit Followed(const StateVictim::Body& body) : victim(body) {}

  // Stops the victim and takes an epoch; it stays stopped.
  void take_epoch() {
    victim.stop();
    image.processes.assign(1, victim.capture(true));
    image.file_tables.assign(1, {});
    ProcessImage& process = image.processes[0];
    auto mappings = read_memory_map(victim.pid(), mappings_, true, nullptr);
    CHECK(mappings.has_value());
    process.mappings = mappings_ = *mappings;
    staging = {};
    if (!memory_) {
      memory_ = MemoryCapture::create(victim.pid(), victim.pid(), {}, injector_of(victim));
    }
    memory_->copy_changed(process.mappings, staging);
  }

  StateVictim victim;
  GroupImage image;
  MemoryStaging staging;

 private:
  std::vector<MappingImage> mappings_;
  std::unique_ptr<MemoryCapture> memory_;
};

[[noreturn]] void self_check_loop(Report* report, const uint64_t* words, uint64_t seed) {
  for (;;) {
    if (!is_filled(words, kWords, seed)) ++report->errors;
    report->pid = ::getpid();
    ++report->rounds;
    ::usleep(1000);
  }
}

}  // namespace

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

}  // namespace replpage::testing
