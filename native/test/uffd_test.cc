// Lazy ranges against a model, and processes that run while their pages are served to them: reads,
// forks, moves, discards and unmappings under load never see anything but the right content.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <algorithm>
#include <array>
#include <condition_variable>
#include <cstring>
#include <functional>
#include <map>
#include <mutex>
#include <random>

#include "core/base/clock.h"
#include "core/base/procfs.h"
#include "core/base/sys_error.h"
#include "core/uffd/fault_server.h"
#include "core/uffd/lazy_ranges.h"
#include "core/uffd/process_memory_source.h"
#include "test/test.h"

namespace replpage {
namespace {

// Where sanitizers allow fixed mappings, too.
constexpr uint64_t kBase = 0x7e9000000000;

TEST(lazy_ranges_agree_with_a_page_by_page_model) {
  constexpr uint64_t kPages = 64;
  std::mt19937 random(7);
  for (int round = 0; round < 300; ++round) {
    LazyRanges ranges;
    std::map<uint64_t, uint64_t> model;  // page -> source page
    for (int step = 0; step < 40; ++step) {
      const uint64_t start = random() % kPages;
      const uint64_t length = 1 + random() % (kPages - start);
      const uint64_t to = kPages + random() % kPages;
      const PageRange range{start * kPageSize, (start + length) * kPageSize};
      const int what = static_cast<int>(random() % 3);
      if (what == 0) {
        ranges.add(range, {0, (1000 + start) * kPageSize});
        for (uint64_t p = start; p < start + length; ++p) model[p] = 1000 + p;
      } else if (what == 1) {
        ranges.erase(range);
        for (uint64_t p = start; p < start + length; ++p) model.erase(p);
      } else {
        ranges.move(range.start, to * kPageSize, range.bytes());
        std::map<uint64_t, uint64_t> moved;
        for (uint64_t p = start; p < start + length; ++p) {
          if (model.contains(p)) moved[p - start + to] = model[p];
          model.erase(p);
        }
        for (uint64_t p = to; p < to + length; ++p) model.erase(p);
        model.insert(moved.begin(), moved.end());
      }
      CHECK(ranges.pages() == model.size() && ranges.empty() == model.empty());
      for (uint64_t p = 0; p < 3 * kPages; ++p) {
        const auto piece = ranges.at(p * kPageSize);
        CHECK(piece.has_value() == model.contains(p));
        if (piece) CHECK(piece->from.position == model[p] * kPageSize);
        const auto next = ranges.first_from(p * kPageSize);
        const auto expected = model.lower_bound(p);
        CHECK(next.has_value() == (expected != model.end()));
        if (next) CHECK(next->start == expected->first * kPageSize);
      }
    }
  }
}

uint64_t value_at(uint64_t page) { return (page + 1) * 0x9E3779B97F4A7C15ull; }

// Shared between the test and the served processes.
struct Board {
  std::atomic<uint32_t> go{0};
  std::atomic<uint64_t> wrong_address{0};
  std::array<std::atomic<uint32_t>, 4096> latency_us{};
};

// Memory of `pages` pages at kBase: full in the test itself, missing in the process that runs body.
enum class From : uint8_t { kProcess, kStore };
constexpr uint64_t kRecordBytes = 8 * kPageSize;

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

uint64_t read_word(const uint8_t* memory, uint64_t page) {
  return *reinterpret_cast<const volatile uint64_t*>(memory + page * kPageSize);
}

void expect(const uint8_t* memory, uint64_t page, uint64_t value) {
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
    changed.wait_for(lock, std::chrono::seconds(20), [this] { return drained || !lost.empty(); });
    return drained;
  }
};

FaultServer::Sources own_memory() {
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
  [[nodiscard]] bool waits_for_device() const override { return true; }
  uint64_t damaged_page = 0;

 private:
  ProcessMemorySource memory_{open_path("/proc/self/mem", O_RDONLY)};
  std::atomic<uint64_t> turns_ = 0;
};

FaultServer::Sources sources_of(From from) {
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
FaultServer::Figures serve(Scene& scene, const Scene::Body& body, From from = From::kProcess) {
  Outcome outcome;
  FaultServer server(list_of(scene.fork_served(body, from)), sources_of(from), outcome.events());
  scene.start();
  const int status = scene.wait_child();
  CHECK_EQUAL(status, 0);
  CHECK(outcome.wait_drained());
  return server.figures();
}

void lazy_pages_read_right_in_random_order(From from) {
  constexpr uint64_t kPages = 32'768;
  Scene scene(kPages, true);
  const auto figures = serve(
      scene,
      [](uint8_t* memory, Board&) {
        std::mt19937_64 random(3);
        for (int i = 0; i < 20'000; ++i) {
          const uint64_t page = random() % kPages;
          expect(memory, page, page % 3 == 0 ? 0 : value_at(page));
        }
      },
      from);
  CHECK(figures.passing_left + figures.stored_left == 0 && figures.drained_us > 0);
}

TEST(lazy_pages_read_right_in_random_order_of_a_process) {
  lazy_pages_read_right_in_random_order(From::kProcess);
}
TEST(lazy_pages_read_right_in_random_order_of_a_store) {
  lazy_pages_read_right_in_random_order(From::kStore);
}

void forked_children_read_lazy_pages_right(From from) {
  constexpr uint64_t kPages = 32'768;
  Scene scene(kPages, false);
  serve(
      scene,
      [](uint8_t* memory, Board&) {
        for (int child = 0; child < 6; ++child) {
          const pid_t pid = ::fork();
          if (pid == 0) {
            try {
              if (child % 2 == 0 && ::fork() == 0) {
                for (uint64_t page = 0; page < kPages; page += 5)
                  expect(memory, page, value_at(page));
                ::_exit(0);
              }
              for (uint64_t page = kPages; page-- > 0;) expect(memory, page, value_at(page));
              int status = 0;
              if (child % 2 == 0 && (::wait(&status) < 0 || status != 0)) ::_exit(2);
              ::_exit(0);
            } catch (const std::exception& error) {
              std::fprintf(stderr, "# child: %s\n", error.what());
              ::_exit(1);
            }
          }
          expect(memory, static_cast<uint64_t>(child) * 5000, value_at(child * 5000ull));
        }
        for (int child = 0; child < 6; ++child) {
          int status = 0;
          if (::wait(&status) < 0 || status != 0) throw std::runtime_error("a child failed");
        }
      },
      from);
}

TEST(forked_children_read_lazy_pages_right_of_a_process) {
  forked_children_read_lazy_pages_right(From::kProcess);
}
TEST(forked_children_read_lazy_pages_right_of_a_store) {
  forked_children_read_lazy_pages_right(From::kStore);
}

void discarded_moved_and_unmapped_lazy_pages_read_right(From from) {
  constexpr uint64_t kPages = 65'536;
  Scene scene(kPages, false);
  serve(
      scene,
      [](uint8_t* memory, Board&) {
        constexpr uint64_t kBlock = 64;
        std::mt19937_64 random(11);
        uint8_t* far = memory + 4 * kPages * kPageSize;
        for (uint64_t block = 0; block + 8 < kPages / kBlock; ++block) {
          const uint64_t first = (kPages / kBlock - 1 - block) * kBlock;  // against the drain
          uint8_t* at = memory + first * kPageSize;
          switch (random() % 5) {
            case 0:  // discard: zeros, and what is written then stays
              if (::madvise(at, 8 * kPageSize, MADV_DONTNEED) != 0)
                throw std::runtime_error("madvise");
              expect(memory, first, 0);
              std::memset(at + kPageSize, 7, kPageSize);
              expect(memory, first + 1, 0x0707070707070707);
              expect(memory, first + 8, value_at(first + 8));
              break;
            case 1: {  // move away and look there; the place left behind is unmapped
              void* to = ::mremap(at, 16 * kPageSize, 16 * kPageSize, MREMAP_MAYMOVE | MREMAP_FIXED,
                                  far + first * kPageSize);
              if (to == MAP_FAILED) throw std::runtime_error("mremap");
              for (uint64_t p = 0; p < 16; p += 3) {
                expect(static_cast<uint8_t*>(to), p, value_at(first + p));
              }
              break;
            }
            case 2: {  // a new mapping in place reads zero
              ::munmap(at, 4 * kPageSize);
              void* to = ::mmap(at, 4 * kPageSize, PROT_READ | PROT_WRITE,
                                MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
              if (to == MAP_FAILED) throw std::runtime_error("mmap");
              expect(memory, first + 2, 0);
              expect(memory, first + 4, value_at(first + 4));
              break;
            }
            case 3:  // split by protection: one mapping becomes three
              ::mprotect(at + 5 * kPageSize, 3 * kPageSize, PROT_READ);
              for (uint64_t p = 0; p < 12; ++p) expect(memory, first + p, value_at(first + p));
              break;
            default: {  // move and grow, keeping the old place mapped
              void* to = ::mremap(at, 8 * kPageSize, 8 * kPageSize,
                                  MREMAP_MAYMOVE | MREMAP_DONTUNMAP | MREMAP_FIXED,
                                  far + first * kPageSize);
              if (to == MAP_FAILED) throw std::runtime_error("mremap");
              expect(memory, first, 0);
              for (uint64_t p = 0; p < 8; ++p) {
                expect(static_cast<uint8_t*>(to), p, value_at(first + p));
              }
            }
          }
        }
      },
      from);
}

TEST(discarded_moved_and_unmapped_lazy_pages_read_right_of_a_process) {
  discarded_moved_and_unmapped_lazy_pages_read_right(From::kProcess);
}
TEST(discarded_moved_and_unmapped_lazy_pages_read_right_of_a_store) {
  discarded_moved_and_unmapped_lazy_pages_read_right(From::kStore);
}

void threads_write_discard_and_fork_at_once(From from) {
  constexpr uint64_t kPages = 65'536;
  Scene scene(kPages, false);
  serve(
      scene,
      [](uint8_t* memory, Board& board) {
        std::vector<std::thread> threads;
        for (uint64_t t = 0; t < 3; ++t) {
          threads.emplace_back([=, &board] {
            std::mt19937_64 random(t);
            try {
              for (uint64_t page = t; page < kPages; page += 3) {
                uint8_t* at = memory + page * kPageSize;
                if (random() % 4 == 0) {
                  ::madvise(at, kPageSize, MADV_DONTNEED);
                  expect(memory, page, 0);
                } else {
                  expect(memory, page, value_at(page));
                  std::memset(at, 9, 64);
                  if (read_word(memory, page) != 0x0909090909090909)
                    throw std::runtime_error("write");
                }
              }
            } catch (const std::exception& error) {
              std::fprintf(stderr, "# thread: %s\n", error.what());
              board.wrong_address = 1;
            }
          });
        }
        for (int i = 0; i < 10; ++i) {
          const pid_t pid = ::fork();
          if (pid == 0) ::_exit(0);
          ::waitpid(pid, nullptr, 0);
        }
        for (std::thread& thread : threads) thread.join();
        if (board.wrong_address != 0) throw std::runtime_error("a thread saw wrong content");
      },
      from);
}

TEST(threads_write_discard_and_fork_at_once_of_a_process) {
  threads_write_discard_and_fork_at_once(From::kProcess);
}
TEST(threads_write_discard_and_fork_at_once_of_a_store) {
  threads_write_discard_and_fork_at_once(From::kStore);
}

TEST(a_process_that_execs_or_exits_ends_its_service) {
  Scene scene(262'144, false);
  serve(scene, [](uint8_t* memory, Board&) {
    expect(memory, 77, value_at(77));
    ::execl("/bin/true", "true", nullptr);
  });
}

TEST(a_lost_source_leaves_threads_blocked) {
  constexpr uint64_t kPages = 4096;
  Scene scene(kPages, false);
  Outcome outcome;
  FaultServer::Sources sources;
  // A process without this memory: every read of it fails.
  const pid_t other = ::fork();
  if (other == 0) {
    ::munmap(reinterpret_cast<void*>(kBase), kPages * kPageSize);
    ::pause();
    ::_exit(0);
  }
  ::usleep(20'000);
  sources.push_back(std::make_unique<ProcessMemorySource>(
      open_path("/proc/" + std::to_string(other) + "/mem", O_RDONLY)));
  auto served = scene.fork_served([](uint8_t* memory, Board& board) {
    if (read_word(memory, 100) != 1) board.wrong_address = 1;
  });
  scene.start();
  {
    FaultServer server(list_of(std::move(served)), std::move(sources), outcome.events());
    CHECK(!outcome.wait_drained() && !outcome.lost.empty());
    CHECK(!server.loss().empty());
    ::usleep(50'000);
    CHECK(scene.board().wrong_address == 0);
    scene.~Scene();  // kills the process before the server closes its descriptors
    new (&scene) Scene(1, false);
  }
  ::kill(other, SIGKILL);
  ::waitpid(other, nullptr, 0);
}

TEST(a_damaged_page_raises_sigbus_and_no_other_does) {
  if (!Uffd::can_poison()) throw testing::Skipped("this kernel has no UFFDIO_POISON");
  constexpr uint64_t kPages = 4096;
  constexpr uint64_t kDamaged = 1001;
  Scene scene(kPages, false);
  auto source = std::make_unique<SlowMemory>();
  source->damaged_page = kBase + kDamaged * kPageSize;
  Outcome outcome;
  FaultServer::Sources sources;
  sources.push_back(std::move(source));
  FaultServer server(list_of(scene.fork_served(
                         [](uint8_t* memory, Board&) {
                           for (uint64_t page = 0; page < kPages; ++page) {
                             if (page / 8 != kDamaged / 8) expect(memory, page, value_at(page));
                           }
                           struct sigaction action {};
                           action.sa_handler = [](int) { ::_exit(0); };
                           ::sigaction(SIGBUS, &action, nullptr);
                           (void)read_word(memory, kDamaged);
                           ::_exit(3);
                         },
                         From::kStore)),
                     std::move(sources), outcome.events());
  scene.start();
  CHECK_EQUAL(scene.wait_child(), 0);
  CHECK(outcome.wait_drained());
  CHECK(outcome.damaged >= 1);
  CHECK_EQUAL(server.figures().pages_damaged, 8u);
}

TEST(faults_are_served_fast_while_the_rest_drains) {
  constexpr uint64_t kPages = 131'072;
  Scene scene(kPages, false);
  const auto figures = serve(scene, [](uint8_t* memory, Board& board) {
    std::mt19937_64 random(5);
    for (auto& latency : board.latency_us) {
      const uint64_t page = kPages / 2 + random() % (kPages / 2);  // ahead of the drain
      const uint64_t before = now_ns();
      const uint64_t value = read_word(memory, page);
      const uint64_t took = now_ns() - before;
      if (value != value_at(page)) throw std::runtime_error("wrong content");
      latency = static_cast<uint32_t>(took);
    }
  });
  std::vector<uint32_t> faults;
  for (const auto& latency : scene.board().latency_us) {
    if (latency > 2000) faults.push_back(latency);  // ns; the others were there already
  }
  CHECK(!faults.empty());
  std::sort(faults.begin(), faults.end());
  testing::note("faults " + std::to_string(faults.size()) + ", p50 " +
                std::to_string(faults[faults.size() / 2] / 1000) + " us, p99 " +
                std::to_string(faults[faults.size() * 99 / 100] / 1000) + " us; drained " +
                std::to_string(kPages / 256) + " MiB in " + std::to_string(figures.drained_us) +
                " us");
}

}  // namespace
}  // namespace replpage
