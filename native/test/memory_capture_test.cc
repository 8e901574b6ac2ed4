// What a capture copies after each thing that a program can do to its memory. A model replica takes
// the runs; afterwards each of its pages must be what the program has.
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>

#include "core/base/sys_error.h"
#include "core/memory/uffd_wp_tracker.h"
#include "test/memory_fixture.h"

namespace replpage {
namespace {

using namespace testing;  // NOLINT

TEST(a_first_round_copies_everything_and_the_next_nothing) {
  MemoryFixture f;
  CHECK(f.replica.pages() >= kAreaPages);
  const CopyRound second = f.round();
  CHECK(second.data_pages <= kOwnPages);
  CHECK_EQUAL(second.absent_pages, 0u);
}

TEST(written_pages_are_copied_and_no_others) {
  MemoryFixture f;
  const CopyRound round = f.after([](uint64_t) -> uint64_t {
    for (size_t i = 0; i < 100; ++i) area[i * 2 * kPageSize] = 77;
    return 0;
  });
  CHECK(round.data_pages >= 100 && round.data_pages <= 100 + kOwnPages);
  CHECK(f.memory->count_dirty(f.victim.map(), 1000) <= (soft_dirty(f) ? kOwnPages : 0));
}

TEST(zeroed_pages_travel_without_content) {
  MemoryFixture f;
  const CopyRound round = f.after([](uint64_t) -> uint64_t {
    std::memset(area, 0, 64 * kPageSize);
    return 0;
  });
  CHECK(round.zero_pages >= 64);
  CHECK(round.data_pages <= kOwnPages);
}

TEST(discarded_anonymous_pages_become_absent) {
  MemoryFixture f;
  const CopyRound few = f.after([](uint64_t) -> uint64_t {
    ::madvise(area + 5 * kPageSize, 3 * kPageSize, MADV_DONTNEED);
    return 0;
  });
  // Few holes in dense memory are read, as zeros.
  CHECK(few.absent_pages + few.zero_pages >= 3);
  const CopyRound huge = f.after([](uint64_t) -> uint64_t {
    ::madvise(area + (2u << 20), 2u << 20, MADV_DONTNEED);
    return 0;
  });
  CHECK(huge.absent_pages + huge.zero_pages >= 512);
  const CopyRound again = f.after([](uint64_t) -> uint64_t {
    area[6 * kPageSize] = 9;
    return static_cast<uint64_t>(area[(2u << 20) + 5]);  // reading shows the zero page
  });
  CHECK(f.replica.has(f.address + 6 * kPageSize));
  CHECK_EQUAL(again.absent_pages, 0u);
}

TEST(pages_discarded_lazily_become_absent) {
  MemoryFixture f;
  f.after([](uint64_t) -> uint64_t {
    ::madvise(area, 64 * kPageSize, MADV_FREE);
    return 0;
  });
  const CopyRound round = f.after([](uint64_t) -> uint64_t {
    constexpr int kPageOut = 21;  // MADV_PAGEOUT reclaims at once: freed pages are dropped
    ::madvise(area, 64 * kPageSize, kPageOut);
    return 0;
  });
  testing::note("dropped by reclaim: " + std::to_string(round.absent_pages));
}

TEST(a_discarded_private_file_page_is_the_files_again) {
  MemoryFixture f;
  const auto map_file = [](uint64_t) -> uint64_t {
    char name[] = "/tmp/memory-test-XXXXXX";
    const int fd = ::mkstemp(name);
    ::unlink(name);
    char page[kPageSize];
    for (int i = 0; i < 64; ++i) {
      std::memset(page, 'a' + i % 26, sizeof page);
      if (::write(fd, page, sizeof page) != sizeof page) return 0;
    }
    area = static_cast<char*>(
        ::mmap(nullptr, 64 * kPageSize, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0));
    ::close(fd);
    for (int i = 0; i < 32; ++i) area[i * kPageSize] = 'X';
    return reinterpret_cast<uint64_t>(area);
  };
  const uint64_t at = f.victim.run(map_file);
  const CopyRound first = f.round();
  CHECK(first.data_pages >= 32 && first.data_pages <= 32 + kOwnPages);
  CHECK(!f.replica.has(at + 40 * kPageSize));
  const CopyRound discarded = f.after([](uint64_t) -> uint64_t {
    ::madvise(area, 8 * kPageSize, MADV_DONTNEED);
    return 0;
  });
  const CopyRound settled =
      f.after([](uint64_t) -> uint64_t { return static_cast<uint64_t>(area[3 * kPageSize]); });
  CHECK_EQUAL((soft_dirty(f) ? discarded : settled).absent_pages, 8u);
  f.after([](uint64_t) -> uint64_t {  // written, and discarded before the next look
    area[50 * kPageSize] = 'Y';
    ::madvise(area + 50 * kPageSize, kPageSize, MADV_DONTNEED);
    area[20 * kPageSize] = 'Z';
    ::madvise(area + 20 * kPageSize, kPageSize, MADV_DONTNEED);
    return 0;
  });
  f.after([](uint64_t) -> uint64_t {
    area[3 * kPageSize] = 'W';
    area[60 * kPageSize] = 'V';
    return 0;
  });
  CHECK(f.replica.has(at + 3 * kPageSize));
  CHECK(f.replica.has(at + 60 * kPageSize));
  CHECK(f.round().data_pages <= kOwnPages);
}

TEST(a_mapping_put_in_the_place_of_another_is_copied_whole) {
  MemoryFixture f;
  const CopyRound round = f.after([](uint64_t) -> uint64_t {
    ::mmap(area + (1u << 20), 1u << 20, PROT_READ | PROT_WRITE,
           MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    area[(1u << 20) + 9 * kPageSize] = 5;
    return 0;
  });
  CHECK(round.absent_pages == 256 || (soft_dirty(f) && round.absent_pages == 255));
  CHECK(round.data_pages <= 1 + kOwnPages);
  CHECK(!f.replica.has(f.address + (1u << 20)));
  CHECK(f.round().data_pages <= kOwnPages);
}

TEST(moved_grown_and_shrunk_mappings_are_followed) {
  MemoryFixture f;
  f.after([](uint64_t) -> uint64_t {  // moved to a fresh place
    void* to = ::mmap(nullptr, 4u << 20, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    area =
        static_cast<char*>(::mremap(area, 4u << 20, 4u << 20, MREMAP_MAYMOVE | MREMAP_FIXED, to));
    return 0;
  });
  f.after([](uint64_t) -> uint64_t {  // shrunk and grown in place: the tail reads as zero
    ::mremap(area, 4u << 20, 1u << 20, 0);
    return ::mremap(area, 1u << 20, 4u << 20, 0) == area ? 1 : 0;
  });
  f.after([](uint64_t) -> uint64_t {
    area[(3u << 20) + 7] = 3;
    return 0;
  });
  f.after([](uint64_t) -> uint64_t {  // moved over a mapping that is tracked
    void* other = ::mmap(nullptr, 1u << 20, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    std::memset(other, 7, 1u << 20);
    area = static_cast<char*>(other);
    return 0;
  });
  f.after([](uint64_t) -> uint64_t {
    char* from = static_cast<char*>(
        ::mmap(nullptr, 1u << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    from[5 * kPageSize] = 4;
    ::mremap(from, 1u << 20, 1u << 20, MREMAP_MAYMOVE | MREMAP_FIXED, area);
    return 0;
  });
}

TEST(the_heap_is_followed_as_it_grows_and_shrinks) {
  MemoryFixture f;
  for (int i = 0; i < 3; ++i) {
    f.after([](uint64_t) -> uint64_t {
      char* from = static_cast<char*>(::sbrk(3u << 20));
      std::memset(from, 5, 3u << 20);
      return 0;
    });
    f.after([](uint64_t) -> uint64_t {
      ::sbrk(-(2 << 20));
      return 0;
    });
    f.after([](uint64_t) -> uint64_t {
      char* from = static_cast<char*>(::sbrk(1u << 20));
      from[100] = 1;
      return 0;
    });
  }
}

uint64_t use_stack(uint64_t depth) {
  volatile char frame[8192];
  frame[0] = static_cast<char>(depth);
  frame[8191] = 1;
  return depth == 0 ? 0 : use_stack(depth - 1) + static_cast<uint64_t>(frame[0] & 1);
}

TEST(a_growing_stack_is_followed) {
  MemoryFixture f;
  const CopyRound round = f.after(use_stack, 100);
  CHECK(round.data_pages + round.zero_pages >= 100);
  f.after(use_stack, 400);
}

TEST(pages_without_read_permission_are_copied_too) {
  MemoryFixture f;
  const CopyRound round = f.after([](uint64_t) -> uint64_t {
    std::memset(area, 33, 16 * kPageSize);
    ::mprotect(area, 8 * kPageSize, PROT_NONE);
    ::mprotect(area + 8 * kPageSize, 8 * kPageSize, PROT_WRITE);
    return 0;
  });
  CHECK(round.data_pages >= 16);
  f.after([](uint64_t) -> uint64_t {
    ::mprotect(area, 16 * kPageSize, PROT_READ | PROT_WRITE);
    area[0] = 1;
    return 0;
  });
}

TEST(huge_pages_are_copied_and_followed) {
  MemoryFixture f;
  f.after([](uint64_t) -> uint64_t {
    make_area(4096);
    ::madvise(area, 16u << 20, MADV_HUGEPAGE);
    std::memset(area, 3, 8u << 20);
    return 0;
  });
  f.after([](uint64_t) -> uint64_t {
    area[(2u << 20) + 12345] = 1;
    ::madvise(area + (4u << 20), 2u << 20, MADV_DONTNEED);
    std::memset(area + (10u << 20), 9, 2u << 20);
    return 0;
  });
  f.after([](uint64_t) -> uint64_t {
    area[(4u << 20) + 1] = 1;
    return 0;
  });
}

TEST(a_forked_child_does_not_disturb_tracking) {
  MemoryFixture f;
  f.after([](uint64_t) -> uint64_t {
    const pid_t child = ::fork();
    if (child == 0) {
      std::memset(area, 99, 1u << 20);
      ::_exit(0);
    }
    area[0] = 12;
    ::waitpid(child, nullptr, 0);
    area[4096] = 13;
    return 0;
  });
  CHECK(f.round().data_pages <= kOwnPages);
}

TEST(writes_by_the_kernel_are_seen) {
  MemoryFixture f;
  const CopyRound round = f.after([](uint64_t) -> uint64_t {
    int ends[2];
    if (::pipe(ends) != 0 || ::write(ends[1], "kernel", 6) != 6) return 1;
    const ssize_t got = ::read(ends[0], area + 300 * kPageSize, 6);
    ::close(ends[0]);
    ::close(ends[1]);
    return static_cast<uint64_t>(got);
  });
  CHECK(round.data_pages >= 1);
}

TEST(rounds_beside_a_running_program_and_one_at_rest_leave_nothing_behind) {
  MemoryFixture f;
  for (int repeat = 0; repeat < 10; ++repeat) {
    f.victim.start(
        [](uint64_t seed) -> uint64_t {
          uint64_t state = seed * 2654435761u + 1;
          for (int i = 0; i < 20000; ++i) {
            state = state * 6364136223846793005u + 1442695040888963407u;
            char* page = area + (state >> 33) % kAreaPages * kPageSize;
            if ((state >> 20) % 64 == 0) {
              ::madvise(page, kPageSize, MADV_DONTNEED);
            } else {
              page[(state >> 10) % kPageSize] = static_cast<char>(state >> 40);
            }
          }
          return 0;
        },
        static_cast<uint64_t>(repeat));
    for (int i = 0; i < 4; ++i) {
      const auto mappings = f.victim.map();
      f.replica.shape(mappings);
      CHECK(!f.memory->copy_changed(mappings, f.replica).process_gone);
    }
    f.victim.finish();
    f.round();
  }
}

// Lets a number of chunks through, then is full.
class FullSink : public ModelReplica {
 public:
  int chunks = 3;
  std::span<uint8_t> reserve(uint64_t bytes) override {
    if (chunks-- == 0) throw SysError("stage pages", ENOSPC);
    return ModelReplica::reserve(bytes);
  }
};

// Write-protecting a part of a mapping would split it for good, and mremap over two mappings fails.
TEST(a_look_with_an_old_map_splits_no_mapping) {
  MemoryFixture f;
  f.round();
  f.victim.run([](uint64_t) -> uint64_t {
    area = static_cast<char*>(
        mmap(nullptr, 16 * kPageSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    return munmap(area + 4 * kPageSize, 12 * kPageSize) == 0;
  });
  const auto old = f.victim.map();
  f.victim.run(
      [](uint64_t) -> uint64_t { return mremap(area, 4 * kPageSize, 8 * kPageSize, 0) == area; });
  f.replica.shape(old);
  f.memory->copy_changed(old, f.replica);
  const auto moved = [](uint64_t) -> uint64_t {
    area[7 * kPageSize] = 7;
    return mremap(area, 8 * kPageSize, 32 * kPageSize, MREMAP_MAYMOVE) != MAP_FAILED;
  };
  CHECK_EQUAL(f.victim.run(moved), 1u);
  f.round();
}

// A round into a sink that takes three chunks only.
void fail_round(MemoryFixture& f) {
  FullSink full;
  full.chunk_bytes_max_ = 16 * kPageSize;
  bool failed = false;
  try {
    const testing::Pause pause(f.victim, *f.memory);
    const auto mappings = f.victim.map();
    f.memory->track(mappings);
    f.memory->copy_changed(mappings, full);
  } catch (const SysError& error) {
    failed = error.error() == ENOSPC;
  }
  CHECK(failed);
}

TEST(after_a_failed_round_its_pages_are_copied_again_and_no_others) {
  MemoryFixture f;
  f.round();
  f.victim.run(fill, 9);
  fail_round(f);
  CHECK(f.round().data_pages >= kAreaPages);
  f.victim.run([](uint64_t) -> uint64_t {
    for (size_t i = 0; i < 200; ++i) area[i * kPageSize] = 67;
    return 0;
  });
  fail_round(f);
  f.victim.run([](uint64_t) -> uint64_t {
    area[300 * kPageSize] = 68;
    return ::madvise(area, 10 * kPageSize, MADV_DONTNEED) == 0;
  });
  fail_round(f);
  const CopyRound round = f.round();
  CHECK(round.data_pages >= 191 && round.data_pages <= 191 + 2 * kOwnPages);
  CHECK(f.round().data_pages <= kOwnPages);
}

TEST(a_last_copy_has_what_a_failed_round_owes) {
  MemoryFixture f;
  f.round();
  f.victim.run(fill, 31);
  fail_round(f);
  f.victim.run(
      [](uint64_t) -> uint64_t { return ::madvise(area, 10 * kPageSize, MADV_DONTNEED) == 0; });
  const auto mappings = f.victim.map();
  f.replica.shape(mappings);
  f.replica.fetch_lazy(f.victim.pid(), f.memory->copy_last(mappings, f.replica, 1000));
  CHECK_EQUAL(f.replica.difference(f.victim.pid(), mappings), std::string());
}

TEST(what_was_copied_in_vain_is_copied_again) {
  MemoryFixture f;
  f.round();
  f.victim.run([](uint64_t) -> uint64_t {
    for (size_t i = 0; i < 30; ++i) area[i * kPageSize] = 69;
    return ::madvise(area + 40 * kPageSize, 5 * kPageSize, MADV_DONTNEED) == 0;
  });
  ModelReplica lost;
  const auto mappings = f.victim.map();
  f.memory->copy_changed(mappings, lost);
  f.victim.run([](uint64_t) -> uint64_t {
    area[41 * kPageSize] = 70;
    return ::madvise(area, 3 * kPageSize, MADV_DONTNEED) == 0;
  });
  const PageRange written{f.address, f.address + 30 * kPageSize};
  const PageRange absent{f.address + 40 * kPageSize, f.address + 45 * kPageSize};
  f.memory->copy_again({&written, 1}, {&absent, 1});
  CHECK(f.round().data_pages <= 28 + 2 * kOwnPages);
}

TEST(a_process_that_died_is_noticed_and_not_taken_for_empty) {
  MemoryFixture f;
  const auto mappings = f.victim.map();
  f.victim.kill();
  ModelReplica replica;
  const CopyRound round = f.memory->copy_changed(mappings, replica);
  CHECK(round.process_gone);
  CHECK_EQUAL(round.absent_pages, 0u);
  CHECK_EQUAL(f.memory->count_dirty(mappings, UINT64_MAX), 0u);
}

TEST(counting_dirty_pages_stops_at_the_limit_and_changes_nothing) {
  MemoryFixture f;
  f.victim.run([](uint64_t) -> uint64_t {
    for (size_t i = 0; i < 500; ++i) area[i * kPageSize] = 66;
    return 0;
  });
  CHECK_EQUAL(f.memory->count_dirty(f.victim.map(), 100), 100u);
  const uint64_t all = f.memory->count_dirty(f.victim.map(), 100000);
  CHECK(all >= 500 && all <= 500 + kOwnPages);
  CHECK(f.round().data_pages >= 500);
}

}  // namespace
}  // namespace replpage
