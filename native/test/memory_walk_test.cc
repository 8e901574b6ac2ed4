// Captures of programs that do many things to their memory, and of those that do nothing any more:
// the last copy.
#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>

#include "core/memory/uffd_wp_tracker.h"
#include "test/memory_fixture.h"
#include "test/random.h"

namespace replpage {
namespace {

using namespace testing;  // NOLINT

TEST(a_random_walk_through_memory_calls_is_followed) {
  MemoryFixture f;
  f.victim.run(make_area, kAreaPages);
  for (uint64_t seed = 1; seed <= 150; ++seed) {
    f.after(
        [](uint64_t start) -> uint64_t {
          Random random(start);
          for (int i = 0; i < 12; ++i) {
            const uint64_t first = random(kAreaPages);
            const uint64_t bytes = (1 + random(kAreaPages - first)) * kPageSize;
            char* at = area + first * kPageSize;
            const auto remap = [&](int protection) {
              ::mmap(at, bytes, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
            };
            switch (random(9)) {
              case 0:
                ::madvise(at, bytes, MADV_DONTNEED);
                break;
              case 1:
                remap(PROT_READ | PROT_WRITE);
                break;
              case 2:
                ::munmap(at, bytes);
                remap(PROT_READ | PROT_WRITE);
                break;
              case 3:
                ::madvise(at, bytes, random(2) ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
                break;
              case 4:
                ::madvise(at, bytes, MADV_FREE);
                break;
              case 5: {
                const uint64_t other = random(kAreaPages - bytes / kPageSize + 1);
                char* spare = static_cast<char*>(::mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                                                        MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
                spare[random(bytes)] = 1;
                ::mremap(spare, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED,
                         area + other * kPageSize);
                break;
              }
              default:
                for (int n = 0; n < 40; ++n) at[random(bytes)] = static_cast<char>(1 + random(255));
            }
          }
          return 0;
        },
        seed);
  }
}

// Nearly full memory of some size is looked at in another way.
TEST(dense_memory_is_followed_through_writes_discards_and_replacement) {
  MemoryFixture f;
  constexpr uint64_t kDensePages = 18432;  // 72 MiB
  f.victim.run(
      [](uint64_t pages) -> uint64_t {
        make_area(pages);
        std::memset(area, 1, pages * kPageSize);
        ::madvise(area + 100 * kPageSize, 50 * kPageSize, MADV_DONTNEED);
        return 0;
      },
      kDensePages);
  f.round();
  f.round();
  CHECK(f.round().data_pages <= kOwnPages);
  for (uint64_t seed = 1; seed <= 40; ++seed) {
    const CopyRound round = f.after(
        [](uint64_t start) -> uint64_t {
          Random random(start);
          for (int i = 0; i < 500; ++i)
            area[random(kDensePages) * kPageSize] = static_cast<char>(i);
          for (int i = 0; i < 5; ++i) {
            char* at = area + random(kDensePages - 2000) * kPageSize;
            ::madvise(at, (1 + random(20)) * kPageSize, MADV_DONTNEED);
            if (random(2) != 0) at[random(20) * kPageSize] = 7;
          }
          char* at = area + random(kDensePages - 2000) * kPageSize;
          const uint64_t bytes = (1 + random(1999)) * kPageSize;
          if (start % 3 == 0) ::madvise(at, bytes, MADV_DONTNEED);
          if (start % 4 == 0) {
            ::mmap(at, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1,
                   0);
          }
          if (start % 5 == 0) {
            ::munmap(at, bytes);
            ::mmap(at, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1,
                   0);
            at[0] = 9;
          }
          if (start % 7 == 0) {
            char* spare = static_cast<char*>(
                ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
            spare[random(bytes)] = 1;
            ::mremap(spare, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, at);
          }
          return 0;
        },
        seed);
    // A new mapping that the kernel joins to another makes both soft-dirty.
    CHECK(soft_dirty(f) || round.data_pages <= 700);
  }
  f.victim.run([](uint64_t) -> uint64_t {
    ::mmap(area + (16u << 20), 8u << 20, PROT_READ | PROT_WRITE,
           MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    ::madvise(area + (40u << 20), 4u << 20, MADV_DONTNEED);
    for (int i = 0; i < 3000; ++i) area[i * 5 * kPageSize] = 3;
    return 0;
  });
  const auto mappings = f.victim.map();
  f.replica.shape(mappings);
  f.replica.fetch_lazy(f.victim.pid(), f.memory->copy_last(mappings, f.replica, 1000));
  CHECK_EQUAL(f.replica.difference(f.victim.pid(), mappings), std::string());
}

TEST(a_last_copy_and_its_lazy_ranges_make_a_whole) {
  MemoryFixture f;
  f.victim.run([](uint64_t) -> uint64_t {
    for (size_t i = 0; i < kAreaPages; i += 3) area[i * kPageSize] = 55;
    ::madvise(area + 600 * kPageSize, 20 * kPageSize, MADV_DONTNEED);
    ::mmap(nullptr, 1u << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE,
           -1, 0);
    return 0;
  });
  const auto mappings = f.victim.map();
  f.replica.shape(mappings);
  const auto lazy = f.memory->copy_last(mappings, f.replica, 64);
  CHECK(!lazy.empty());
  CHECK_EQUAL(lazy.front().pid, 7);
  f.replica.fetch_lazy(f.victim.pid(), lazy);
  CHECK_EQUAL(f.replica.difference(f.victim.pid(), mappings), std::string());
}

TEST(a_last_copy_without_any_before_is_whole_too) {
  MemoryFixture f;
  MemoryVictim other;
  other.run(make_area, kAreaPages);
  other.run(fill, 3);
  const auto memory = MemoryCapture::create(other.pid(), 9, std::nullopt, other.injector());
  ModelReplica replica;
  const auto mappings = other.map();
  replica.fetch_lazy(other.pid(), memory->copy_last(mappings, replica, 64));
  CHECK_EQUAL(replica.difference(other.pid(), mappings), std::string());
}

TEST(a_process_never_tracked_can_be_copied_at_its_end) {
  MemoryFixture f;
  MemoryVictim other;
  other.run(make_area, kAreaPages);
  other.run(fill, 3);
  const auto memory = MemoryCapture::create_for_last_copy(other.pid(), 9);
  ModelReplica replica;
  const auto mappings = other.map();
  replica.fetch_lazy(other.pid(), memory->copy_last(mappings, replica, 64));
  CHECK_EQUAL(replica.difference(other.pid(), mappings), std::string());
}

}  // namespace
}  // namespace replpage
