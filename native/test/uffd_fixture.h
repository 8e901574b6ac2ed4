// A process whose memory is served to it by a fault server, from the memory of the test itself.
#pragma once

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <condition_variable>
#include <cstdio>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "core/base/procfs.h"
#include "core/base/urgency.h"
#include "core/uffd/fault_server.h"
#include "core/uffd/process_memory_source.h"
#include "test/test.h"

namespace replpage::uffd_testing {

// Where sanitizers allow fixed mappings, too.
inline constexpr uint64_t kBase = 0x7e9000000000;

inline uint64_t value_at(uint64_t page) { return (page + 1) * 0x9E3779B97F4A7C15ull; }

// Shared between the test and the served processes.
struct Board {
  std::atomic<uint32_t> go{0};
  std::atomic<uint64_t> wrong_address{0};
  std::array<std::atomic<uint32_t>, 4096> latency_us{};
};

// Memory of `pages` pages at kBase: full in the test itself, missing in the process that runs body.
enum class From : uint8_t { kProcess, kStore };
inline constexpr uint64_t kRecordBytes = 8 * kPageSize;

class Scene {
 public:
  using Body = std::function<void(uint8_t* memory, Board& board)>;

  Scene(uint64_t pages, bool zero_every_third) : bytes_(pages * kPageSize) {
    memory_ = map(PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED_NOREPLACE);
    for (uint64_t page = 0; page < pages; ++page) {
      if (zero_every_third && page % 3 == 0) continue;
      const uint64_t value = value_at(page);
      std::memcpy(memory_ + page * kPageSize, &value, sizeof value);
      std::memcpy(memory_ + (page + 1) * kPageSize - sizeof value, &value, sizeof value);
    }
    board_ = static_cast<Board*>(
        ::mmap(nullptr, sizeof(Board), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    new (board_) Board();
  }
  ~Scene() {
    if (child_ > 0) {
      ::kill(child_, SIGKILL);
      ::waitpid(child_, nullptr, 0);
    }
    ::munmap(memory_, bytes_);
    ::munmap(board_, sizeof(Board));
  }

  // Forks the served process; it waits for start().
  FaultServer::Served fork_served(const Body& body, From from = From::kProcess) {
    int ends[2];
    CHECK(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0);
    UniqueFd ours(ends[0]);
    UniqueFd theirs(ends[1]);
    child_ = ::fork();
    if (child_ == 0) ::_exit(run(theirs.get(), body));
    int number = -1;
    CHECK(::read(ours.get(), &number, sizeof number) == sizeof number && number >= 0);
    const UniqueFd pidfd(static_cast<int>(::syscall(SYS_pidfd_open, child_, 0)));
    Uffd uffd(UniqueFd(static_cast<int>(::syscall(SYS_pidfd_getfd, pidfd.get(), number, 0))));
    CHECK(uffd.valid());
    uffd.enable(kLazyFeatures);
    const PageRange range{kBase, kBase + bytes_};
    uffd.register_missing(range);
    CHECK(::write(ours.get(), "g", 1) == 1);
    LazyRanges ranges;
    const uint64_t step = from == From::kProcess ? bytes_ : kRecordBytes;
    for (uint64_t at = range.start; at < range.end; at += step) {
      ranges.add({at, std::min(at + step, range.end)}, {0, at});
    }
    LazyRanges none;
    if (from == From::kProcess) return {std::move(uffd), {std::move(ranges), std::move(none)}};
    return {std::move(uffd), {std::move(none), std::move(ranges)}};
  }

  void start() { board_->go = 1; }
  int wait_child() {
    int status = 0;
    CHECK(::waitpid(child_, &status, 0) == child_);
    child_ = 0;
    return status;
  }
  Board& board() { return *board_; }

 private:
  uint8_t* map(int prot, int flags) const {
    void* at = ::mmap(reinterpret_cast<void*>(kBase), bytes_, prot,
                      flags | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(at != MAP_FAILED);
    return static_cast<uint8_t*>(at);
  }

  // In the child. Its own descriptor is closed, as a replica's is.
  int run(int link, const Body& body) {
    uint8_t* memory = map(PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED);
    const int uffd = static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK));
    char byte = 0;
    if (::write(link, &uffd, sizeof uffd) != sizeof uffd || ::read(link, &byte, 1) != 1) return 3;
    ::close(uffd);
    while (board_->go == 0) ::usleep(100);
    try {
      body(memory, *board_);
      return 0;
    } catch (const std::exception& error) {
      std::fprintf(stderr, "# served process: %s\n", error.what());
      return 1;
    }
  }

  uint64_t bytes_;
  uint8_t* memory_ = nullptr;
  Board* board_ = nullptr;
  pid_t child_ = 0;
};

inline uint64_t read_word(const uint8_t* memory, uint64_t page) {
  return *reinterpret_cast<const volatile uint64_t*>(memory + page * kPageSize);
}

inline void expect(const uint8_t* memory, uint64_t page, uint64_t value) {
  const uint64_t seen = read_word(memory, page);
  uint64_t last = 0;
  std::memcpy(&last, memory + (page + 1) * kPageSize - sizeof last, sizeof last);
  if (seen != value || last != value) {
    throw std::runtime_error("page " + std::to_string(page) + " reads " + std::to_string(seen) +
                             " and " + std::to_string(last) + ", expected " +
                             std::to_string(value));
  }
}

struct Outcome {
  std::mutex mutex;
  std::condition_variable changed;
  bool drained = false;
  std::string lost;

  bool released = false;
  std::atomic<int> damaged = 0;

  FaultServer::Events events() {
    return {.released =
                [this] {
                  const std::lock_guard lock(mutex);
                  CHECK(!released && !drained);
                  released = true;
                },
            .drained =
                [this] {
                  const std::lock_guard lock(mutex);
                  drained = true;
                  changed.notify_all();
                },
            .lost =
                [this](const std::string& reason) {
                  const std::lock_guard lock(mutex);
                  lost = reason;
                  changed.notify_all();
                },
            .damaged = [this](const std::string&) { ++damaged; }};
  }
  bool wait_drained() {
    std::unique_lock lock(mutex);
    changed.wait_for(lock, std::chrono::seconds(20 * testing::slowness()),
                     [this] { return drained || !lost.empty(); });
    return drained;
  }
};

inline FaultServer::Sources own_memory() {
  FaultServer::Sources sources;
  sources.push_back(std::make_unique<ProcessMemorySource>(open_path("/proc/self/mem", O_RDONLY)));
  return sources;
}

// Our own memory, as slow and unsteady as a page store may be.
class SlowMemory final : public PageSource {
 public:
  void read(uint64_t position, std::span<uint8_t> buffer) override {
    const uint64_t turn = turns_++;
    if (turn % 3 != 0) ::usleep(turn % 7 * 50);
    if (position <= damaged_page && damaged_page < position + buffer.size()) {
      throw PageDamaged("a page that was damaged on purpose");
    }
    memory_.read(position, buffer);
  }
  bool try_read(uint64_t position, std::span<uint8_t> buffer) override {
    if (turns_++ % 4 != 0) return false;
    read(position, buffer);
    return true;
  }
  bool read_many(std::span<const PagesWanted> wanted) override {
    if (turns_++ % 2 != 0) return false;
    ::usleep(200);  // for the program to change what was asked for
    for (const PagesWanted& pages : wanted) {
      const uint64_t end = pages.position + pages.into.size();
      if (pages.position <= damaged_page && damaged_page < end) return false;
      memory_.read(pages.position, pages.into);
    }
    return true;
  }
  [[nodiscard]] bool waits_for_device() const override { return true; }
  uint64_t damaged_page = 0;

 private:
  ProcessMemorySource memory_{open_path("/proc/self/mem", O_RDONLY)};
  std::atomic<uint64_t> turns_ = 0;
};

inline FaultServer::Sources sources_of(From from) {
  if (from == From::kProcess) return own_memory();
  FaultServer::Sources sources;
  sources.push_back(std::make_unique<SlowMemory>());
  return sources;
}

template <class... T>
std::vector<FaultServer::Served> list_of(T... served) {
  std::vector<FaultServer::Served> list;
  (list.push_back(std::move(served)), ...);
  return list;
}

// Runs body against a fault server; the process must end well and everything must get drained.
inline FaultServer::Figures serve(Scene& scene, const Scene::Body& body,
                                  From from = From::kProcess) {
  Outcome outcome;
  FaultServer server(list_of(scene.fork_served(body, from)), sources_of(from), outcome.events(),
                     own_cpus());
  scene.start();
  const int status = scene.wait_child();
  CHECK_EQUAL(status, 0);
  CHECK(outcome.wait_drained());
  return server.figures();
}

}  // namespace replpage::uffd_testing
