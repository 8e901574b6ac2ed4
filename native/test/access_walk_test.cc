// Accessed bits of a child process, read from its page tables.
#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <set>

#include "core/access/page_tables.h"
#include "core/access/page_walk_tracker.h"
#include "core/base/clock.h"
#include "core/base/procfs.h"
#include "test/memory_fixture.h"

namespace replpage {
namespace {

using namespace testing;  // NOLINT

// New pages wait in a batch of the processor that they were touched on; advice empties that of the
// processor it is given on. Here the child and we have the same one.
struct OneProcessor {
  OneProcessor() {
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(::sched_getcpu(), &one);
    CHECK_EQUAL(::sched_setaffinity(0, sizeof one, &one), 0);
  }
};

struct WalkFixture {
  WalkFixture() {
    if (const std::string why = PageWalkTracker::refusal(); !why.empty()) SKIP(why);
    start = victim.run(make_area, kAreaPages);
    victim.run(fill, 1);
  }

  // Numbers of the area's pages that were touched.
  std::set<uint64_t> sample() {
    touched.clear();
    const auto mappings = victim.map();
    last = tracker.sample(mappings, [this](std::span<const PageRange> ranges) {
      for (const PageRange& range : ranges) {
        CHECK(touched.empty() || touched.back().end <= range.start);
        touched.push_back(range);
      }
    });
    std::set<uint64_t> pages;
    for (const PageRange& range : touched) {
      for (uint64_t at = range.start; at < range.end; at += kPageSize) {
        if (at >= start && at < start + kAreaPages * kPageSize) {
          pages.insert((at - start) / kPageSize);
        }
      }
    }
    return pages;
  }

  OneProcessor processor;
  // Whether just `expected` was touched when the victim has done something. Others clear accessed
  // bits as well: a kdamond takes one page now and then, so it may do it again.
  bool finds(const std::set<uint64_t>& expected, uint64_t (*function)(uint64_t),
             uint64_t argument) {
    constexpr int kTries = 6;
    for (int i = 0; i < kTries; ++i) {
      sample();
      victim.run(function, argument);
      if (sample() == expected) return true;
    }
    return false;
  }

  MemoryVictim victim;
  PageWalkTracker tracker{victim.pid()};
  uint64_t start = 0;
  PageRanges touched;
  AccessSample last;
};

// Numbers from `first` to below `last`.
std::set<uint64_t> every(uint64_t step, uint64_t first = 0, uint64_t last = kAreaPages) {
  std::set<uint64_t> pages;
  for (uint64_t page = first; page < last; page += step) pages.insert(page);
  return pages;
}

uint64_t write_page(uint64_t page) { return area[page * kPageSize] = 5; }

uint64_t read_every(uint64_t step) {
  uint64_t sum = 0;
  for (size_t i = 0; i < kAreaPages; i += step) sum += *(volatile uint8_t*)(area + i * kPageSize);
  return sum;
}

TEST(access_page_walk_tells_pages_that_were_read_or_written) {
  WalkFixture f;
  CHECK(f.finds(every(1), read_every, 1));
  CHECK(f.last.began_anew);
  CHECK_EQUAL(f.sample().size(), 0u);
  CHECK(f.finds(every(3), read_every, 3));
  CHECK(f.finds({77}, write_page, 77));
  CHECK_EQUAL(f.sample().size(), 0u);
}

TEST(access_page_walk_leaves_out_locked_memory_zero_pages_and_what_is_no_longer_there) {
  WalkFixture f;
  f.sample();
  f.sample();
  f.victim.run([](uint64_t) -> uint64_t {
    ::madvise(area, 64 * kPageSize, MADV_DONTNEED);
    uint64_t sum = 0;
    for (int i = 0; i < 32; ++i) sum += *(volatile uint8_t*)(area + i * kPageSize);  // zero page
    ::mlock(area + 512 * kPageSize, 512 * kPageSize);
    ::mprotect(area + 64 * kPageSize, 64 * kPageSize, PROT_NONE);
    return sum + read_every(1 << 20);
  });
  const auto mappings = f.victim.map();
  const auto pages = f.sample();
  CHECK(pages.empty());
  // With old mappings too: nothing but the pages is looked at.
  f.victim.run([](uint64_t) -> uint64_t {
    ::munmap(area, kAreaPages / 2 * kPageSize);
    return 0;
  });
  const AccessSample sample = f.tracker.sample(mappings, [](auto) {});
  CHECK(sample.began_anew);
}

uint64_t make_huge(uint64_t count) {
  const uint64_t start = make_area(count * 512);
  ::madvise(area, count * kHugeBytes, MADV_HUGEPAGE);
  for (uint64_t i = 0; i < count * 512; ++i) area[i * kPageSize] = 1;
  return start;
}

uint64_t huge_kib(pid_t pid) {
  const auto text = read_proc("/proc/" + std::to_string(pid) + "/smaps_rollup");
  const auto value = text ? field_of(*text, "AnonHugePages") : std::nullopt;
  return value ? std::stoull(std::string(*value)) : 0;
}

TEST(access_page_walk_counts_huge_pages_whole_and_never_splits_them) {
  WalkFixture f;
  f.start = f.victim.run(make_huge, 4);
  if (huge_kib(f.victim.pid()) < 4 * 2048) SKIP("no huge pages to be had");
  CHECK(f.finds(every(1), read_every, 1));
  CHECK_EQUAL(f.sample().size(), 0u);
  CHECK(f.finds(every(1, 512, 1024), write_page, 700));
  CHECK_EQUAL(huge_kib(f.victim.pid()), 4u * 2048);
}

TEST(access_page_walk_notices_the_end_of_a_process) {
  WalkFixture f;
  const auto mappings = f.victim.map();
  f.sample();
  f.victim.kill();
  CHECK(f.tracker.sample(mappings, [](auto) {}).process_gone);
}

TEST(access_page_walk_follows_a_process_whose_first_thread_has_ended) {
  WalkFixture f;
  f.sample();
  f.victim.start([](uint64_t) -> uint64_t {
    pthread_t thread;
    ::pthread_create(
        &thread, nullptr,
        [](void*) -> void* {
          for (;;) {
            area[5 * kPageSize] = 1;
            ::usleep(1000);
          }
        },
        nullptr);
    ::pthread_exit(nullptr);
  });
  ::usleep(50'000 * static_cast<unsigned>(slowness()));
  f.sample();
  f.sample();
  ::usleep(20'000 * static_cast<unsigned>(slowness()));
  for (int i = 0; f.sample() != std::set<uint64_t>{5}; ++i) {
    CHECK(i < 10);
    ::usleep(20'000);
  }
}

// Tables are freed and used anew while they are read.
TEST(access_page_walk_survives_a_process_that_maps_and_unmaps) {
  WalkFixture f;
  f.victim.start([](uint64_t) -> uint64_t {
    for (int round = 0; round < 3000; ++round) {
      const uint64_t bytes = static_cast<uint64_t>(1 + round % 7) * kHugeBytes;
      auto* at = static_cast<char*>(
          ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
      for (uint64_t i = 0; i < bytes; i += 64 * kPageSize) at[i] = 1;
      ::munmap(at, bytes);
    }
    return 0;
  });
  for (int i = 0; i < 300; ++i) {
    const auto mappings = f.victim.map();
    CHECK(!f.tracker.sample(mappings, [](auto) {}).process_gone);
  }
  f.victim.finish();
}

TEST(access_page_walk_figures) {
  WalkFixture f;
  constexpr uint64_t kPages = 1 << 18;
  f.victim.run(make_area, kPages);
  f.victim.run([](uint64_t) -> uint64_t {
    for (uint64_t i = 0; i < kPages; ++i) area[i * kPageSize] = 1;
    return 0;
  });
  const auto show = [&f](const char* what) {
    f.sample();
    char text[200];
    std::snprintf(text, sizeof text, "%s: look %.2f ms, clear %.2f ms, %lu of %lu MiB touched",
                  what, static_cast<double>(f.last.look_us) / 1000,
                  static_cast<double>(f.last.clear_us) / 1000, f.last.touched_pages >> 8,
                  f.last.looked_bytes >> 20);
    note(text);
  };
  show("1 GiB, all touched");
  show("1 GiB, none");
  show("1 GiB, none");
  // Slots of 3 in 10 pages at random, as objects of a heap are.
  f.victim.run([](uint64_t) -> uint64_t {
    uint64_t state = 88172645463325252u;
    for (uint64_t i = 0; i < kPages; ++i) {
      state ^= state << 13;
      state ^= state >> 7;
      state ^= state << 17;
      if (state % 10 < 3) area[i * kPageSize] = 1;
    }
    return 0;
  });
  show("1 GiB, 30 % of single pages");
  f.victim.run([](uint64_t) -> uint64_t {
    for (uint64_t i = 0; i < kPages * 3 / 10; ++i) area[i * kPageSize] = 1;
    return 0;
  });
  show("1 GiB, the first 30 %");
}

}  // namespace
}  // namespace replpage
