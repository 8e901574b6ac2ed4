// The parts of access tracking that need nothing of the kernel, and the idle bitmap.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <random>
#include <set>

#include "core/access/cold_advice.h"
#include "core/access/idle_bitmap_tracker.h"
#include "core/access/sample_pace.h"
#include "core/access/table_entries.h"
#include "core/base/procfs.h"
#include "core/base/sys_error.h"
#include "core/memory/pagemap_entries.h"
#include "test/memory_fixture.h"

namespace replpage {
namespace {

using namespace testing;  // NOLINT

constexpr uint64_t kBase = uint64_t{3} << 30;

TEST(access_table_entries_are_told_one_by_one) {
  std::mt19937_64 random(7);
  for (int round = 0; round < 2000; ++round) {
    std::vector<uint64_t> entries(kEntriesPerTable);
    const uint64_t zero = 0x5000;
    const uint64_t usual = round % 3 == 0 ? 0 : kTablePresent | kTableAccessed;
    for (uint64_t& entry : entries) {
      const uint64_t choice = random() % (round % 5 == 0 ? 6 : 200);
      entry = usual | 0x9000;
      if (choice == 0) entry = random() & ~kTableAddress;
      if (choice == 1) entry = kTablePresent | kTableAccessed | kTableSpecial | zero;
      if (choice == 2) entry = kTableNoAccess | kTableAccessed;
      if (choice == 3) entry = kTableAccessed | 0x7000;  // swapped out
    }
    const size_t first = random() % kEntriesPerTable;
    const size_t last = first + random() % (kEntriesPerTable - first + 1);
    PageRanges expected, found;
    for (size_t i = first; i < last; ++i) {
      const uint64_t entry = entries[i];
      const bool there = (entry & 0x101) != 0;
      if (!there || (entry & 0x20) == 0 || (entry & kTableAddress) == zero) continue;
      append_range(expected, {kBase + i * kPageSize, kBase + (i + 1) * kPageSize});
    }
    append_touched(entries, kBase, first, last, zero, found);
    CHECK(found == expected);
  }
}

// Pages of ranges, by number.
std::set<uint64_t> numbers(const PageRanges& ranges) {
  std::set<uint64_t> pages;
  for (const PageRange& range : ranges) {
    for (uint64_t at = range.start; at < range.end; at += kPageSize) pages.insert(at / kPageSize);
  }
  return pages;
}

TEST(access_advice_covers_what_was_touched_in_whole_folios_within_mappings) {
  std::mt19937_64 random(11);
  for (int round = 0; round < 500; ++round) {
    PageRanges mapped, touched;
    uint64_t at = kBase;
    for (int i = 0; i < 5; ++i) {
      at += random() % 3 * 64 * kPageSize;
      mapped.push_back({at, at + (1 + random() % 300) * kPageSize});
      at = mapped.back().end;
    }
    for (uint64_t page = kBase; page < at; page += (1 + random() % 20) * kPageSize) {
      const PageRange part{page, page + (1 + random() % 4) * kPageSize};
      for (const PageRange& range : intersect_ranges(mapped, {&part, 1})) {
        append_range(touched, range);
      }
    }
    const uint64_t folio = kPageSize << (random() % 5);
    const PageRanges plan = plan_advice(touched, mapped, folio);
    CHECK(subtract_ranges(touched, plan).empty());
    for (size_t i = 0; i < plan.size(); ++i) {
      if (i > 0) CHECK(plan[i - 1].end <= plan[i].start);
      // Each within one mapping, and ending where folios or mappings do.
      bool inside = false;
      for (const PageRange& range : mapped) {
        if (plan[i].start < range.start || plan[i].end > range.end) continue;
        inside = true;
        CHECK(plan[i].start == range.start || plan[i].start % folio == 0);
        CHECK(plan[i].end == range.end || plan[i].end % folio == 0);
      }
      CHECK(inside);
    }
  }
}

TEST(access_advice_is_joined_over_short_gaps_only) {
  const PageRanges mapped{{kBase, kBase + 1000 * kPageSize}};
  const auto page = [](uint64_t number) {
    return PageRange{kBase + number * kPageSize, kBase + (number + 1) * kPageSize};
  };
  CHECK_EQUAL(plan_advice(PageRanges{page(0), page(4)}, mapped, kPageSize).size(), 1u);
  CHECK_EQUAL(plan_advice(PageRanges{page(0), page(40)}, mapped, kPageSize).size(), 2u);
}

AccessSample sample_of(uint64_t gib, uint64_t us, uint64_t bits) {
  AccessSample sample;
  sample.looked_bytes = gib << 30;
  sample.look_us = us;
  sample.cleared_bits = bits;
  return sample;
}

TEST(access_pace_stretches_until_sampling_fits_its_share) {
  SamplePace pace(30'000'000);
  CHECK_EQUAL(pace.period_us(), 5'000'000u);
  pace.note(sample_of(10, 20'000, 100));
  CHECK_EQUAL(pace.period_us(), 5'000'000u);
  for (int i = 0; i < 50; ++i) pace.note(sample_of(10, 150'000, 100));
  CHECK(pace.period_us() > 14'900'000 && pace.period_us() <= 15'000'000);
  CHECK(pace.share() <= 0.0101);
  // A small process has the share of 1 GiB.
  SamplePace small(30'000'000);
  for (int i = 0; i < 50; ++i) small.note(sample_of(0, 10'000, 100));
  CHECK(small.period_us() > 9'900'000 && small.period_us() <= 10'000'000);
  // What the process loses counts too: 0.3 us for each of 786,432 bits.
  SamplePace slowed(30'000'000);
  for (int i = 0; i < 50; ++i) slowed.note(sample_of(10, 1000, 786'432));
  CHECK(slowed.period_us() > 23'000'000 && slowed.period_us() < 24'000'000);
  for (int i = 0; i < 100; ++i) slowed.note(sample_of(10, 1000, 0));
  CHECK_EQUAL(slowed.period_us(), 5'000'000u);
  for (int i = 0; i < 100; ++i) slowed.note(sample_of(1, 1u << 31, 0));
  CHECK_EQUAL(slowed.period_us(), SamplePace::kPeriodMaxUs);
}

TEST(access_tracker_that_does_not_work_is_refused_with_the_reason) {
  for (const AccessSupport& support : access_support()) {
    note(std::string(name_of(support.kind)) + ": " +
         (support.refusal.empty() ? "works" : support.refusal));
    if (support.refusal.empty()) {
      CHECK(make_access_tracker(::getpid(), support.kind)->kind() == support.kind);
      continue;
    }
    try {
      make_access_tracker(::getpid(), support.kind);
      CHECK(false);
    } catch (const SysError& error) {
      CHECK(std::string(error.what()).find(support.refusal) != std::string::npos);
    }
  }
  CHECK(make_access_tracker(::getpid()) != nullptr);
  CHECK(make_access_tracker(::getpid(), AccessTrackerKind::kWriteRecency)
            ->sample({}, [](auto) { CHECK(false); })
            .began_anew);
}

// ---- the idle bitmap, first with a file in its place

struct BitmapFile {
  BitmapFile() {
    char name[] = "/tmp/replpage-idle-XXXXXX";
    file = UniqueFd(::mkostemp(name, O_CLOEXEC));
    path = name;
    at_end([path = path] { ::unlink(path.c_str()); });
  }
  UniqueFd file;
  std::string path;
};

// Zeros change nothing here either.
class PlainBitmap : public IdleBitmap {
 public:
  explicit PlainBitmap(const std::string& path)
      : IdleBitmap(path), file_(open_path(path, O_RDWR)) {}

 protected:
  void write(std::span<const uint64_t> words, uint64_t first) override {
    std::vector<uint64_t> all(words.size());
    const auto at = static_cast<off_t>(first * sizeof(uint64_t));
    (void)!::pread(file_.get(), all.data(), words.size_bytes(), at);
    for (size_t i = 0; i < words.size(); ++i) all[i] |= words[i];
    (void)!::pwrite(file_.get(), all.data(), words.size_bytes(), at);
  }

 private:
  UniqueFd file_;
};

TEST(access_idle_bitmap_has_one_bit_a_frame_in_words_of_64) {
  const BitmapFile f;
  PlainBitmap bitmap(f.path);
  std::mt19937_64 random(3);
  std::set<uint64_t> frames;
  for (uint64_t frame = random() % 70; frames.size() < 5000; frame += 1 + random() % 400) {
    frames.insert(frame);
  }
  // Also a run that is longer than one call.
  for (uint64_t frame = 3'000'000; frame < 4'200'000; frame += 60) frames.insert(frame);
  const std::vector<uint64_t> all(frames.begin(), frames.end());
  std::vector<uint64_t> half;
  for (size_t i = 0; i < all.size(); i += 2) half.push_back(all[i]);
  for (const uint8_t bit : bitmap.read(all)) CHECK_EQUAL(int{bit}, 0);
  bitmap.set(half);
  const auto bits = bitmap.read(all);
  CHECK_EQUAL(bits.size(), all.size());
  for (size_t i = 0; i < bits.size(); ++i) CHECK_EQUAL(bits[i] != 0, i % 2 == 0);
  uint8_t byte = 0;
  CHECK_EQUAL(::pread(f.file.get(), &byte, 1, static_cast<off_t>(half[7] / 8)), 1);
  CHECK((byte >> half[7] % 8 & 1) != 0);
}

TEST(access_idle_bitmap_tells_pages_whose_frames_are_not_idle) {
  const BitmapFile f;
  MemoryVictim victim;
  const uint64_t start = victim.run(make_area, kAreaPages);
  victim.run(fill, 1);
  IdleBitmapTracker tracker(victim.pid(), std::make_unique<PlainBitmap>(f.path));
  const PageRange area_range{start, start + kAreaPages * kPageSize};
  const auto sample = [&] {
    PageRanges touched;
    const auto mappings = victim.map();
    const AccessSample taken = tracker.sample(mappings, [&](std::span<const PageRange> ranges) {
      for (const PageRange& range : ranges) append_range(touched, range);
    });
    CHECK_EQUAL(taken.touched_pages, total_bytes(touched) / kPageSize);
    return intersect_ranges(touched, {&area_range, 1});
  };
  if (sample() != PageRanges{area_range}) SKIP("page frames are hidden");
  CHECK(sample().empty());
  // As the kernel would, when the victim touches some pages.
  const UniqueFd pagemap =
      open_path("/proc/" + std::to_string(victim.pid()) + "/pagemap", O_RDONLY);
  std::set<uint64_t> expected;
  for (uint64_t page = 0; page < kAreaPages; page += 17) {
    uint64_t entry = 0;
    const uint64_t at = start / kPageSize + page;
    CHECK_EQUAL(::pread(pagemap.get(), &entry, 8, static_cast<off_t>(at * 8)), 8);
    const uint64_t frame = entry & kEntryFrame;
    uint64_t word = 0;
    CHECK_EQUAL(::pread(f.file.get(), &word, 8, static_cast<off_t>(frame / 64 * 8)), 8);
    word &= ~(uint64_t{1} << frame % 64);
    CHECK_EQUAL(::pwrite(f.file.get(), &word, 8, static_cast<off_t>(frame / 64 * 8)), 8);
    expected.insert(at);
  }
  CHECK(numbers(sample()) == expected);
  CHECK(sample().empty());
  const auto mappings = victim.map();
  victim.kill();
  CHECK(tracker.sample(mappings, [](auto) {}).process_gone);
}

// Emulated machines set the bits late, if at all.
TEST(access_idle_bitmap_follows_a_process) {
  if (const std::string why = IdleBitmapTracker::refusal(); !why.empty()) SKIP(why);
  MemoryVictim victim;
  const uint64_t start = victim.run(make_area, kAreaPages);
  victim.run(fill, 1);
  IdleBitmapTracker tracker(victim.pid(), std::make_unique<IdleBitmap>(kIdleBitmapPath));
  AccessSample taken;
  const auto sample = [&] {
    uint64_t pages = 0;
    const PageRange area_range{start, start + kAreaPages * kPageSize};
    const auto mappings = victim.map();
    taken = tracker.sample(mappings, [&](std::span<const PageRange> ranges) {
      pages += total_bytes(intersect_ranges(ranges, {&area_range, 1})) / kPageSize;
    });
    return pages;
  };
  CHECK_EQUAL(sample(), kAreaPages);
  const uint64_t idle = sample();
  victim.run([](uint64_t) -> uint64_t {
    uint64_t sum = 0;
    for (size_t i = 0; i < kAreaPages; i += 4) sum += *(volatile uint8_t*)(area + i * kPageSize);
    return sum;
  });
  const uint64_t read = sample();
  char text[120];
  std::snprintf(text, sizeof text, "idle bitmap, 8 MiB: look %lu us, set %lu us; %lu and %lu pages",
                taken.look_us, taken.clear_us, idle, read);
  note(text);
  CHECK(idle < kAreaPages / 8);
  if (slowness() == 1) CHECK(read >= kAreaPages / 4 && read < kAreaPages / 2);
}

}  // namespace
}  // namespace replpage
