// Processes that run while their pages are served to them: reads, forks, moves, discards and
// unmappings under load never see anything but the right content.
#include <sys/mman.h>
#include <sys/wait.h>

#include <algorithm>
#include <random>
#include <thread>

#include "core/base/clock.h"
#include "core/base/sys_error.h"
#include "test/uffd_fixture.h"

namespace replpage::uffd_testing {
namespace {

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
    FaultServer server(list_of(std::move(served)), std::move(sources), outcome.events(),
                       own_cpus());
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
                     std::move(sources), outcome.events(), own_cpus());
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
}  // namespace replpage::uffd_testing
