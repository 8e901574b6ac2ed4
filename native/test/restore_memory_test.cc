// Replicas whose address space changes, and memory that is served later.
#include <algorithm>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "core/base/clock.h"
#include "core/base/procfs.h"
#include "test/followed.h"
#include "test/map_text.h"

namespace replpage::testing {

namespace {

// Changes its address space step by step, as the test asks, and checks all of it all the time.
class Changer {
 public:
  explicit Changer(Report* report) : report_(report) {}

  [[noreturn]] void run(const std::function<void()>& ready) {
    fixed_ = new_memory(kBytes);
    fill(fixed_, kBytes / 8, 1);
    ready();
    for (uint64_t step = 0;;) {
      if (report_->values[0] != step) {
        change(++step);
        report_->values[1] = step;
      }
      if (!is_right()) ++report_->errors;
      ++report_->rounds;
      ::usleep(500);
    }
  }

 private:
  static constexpr uint64_t kBytes = 1 << 20;

  void change(uint64_t step) {
    switch (step) {
      case 1:  // appears; a hole in the middle; read-only after it was written
        added_ = new_memory(4 * kBytes);
        fill(added_, 4 * kBytes / 8, 2);
        ::munmap(added_ + kBytes / 8, kBytes);
        ::mprotect(added_, kBytes, PROT_READ);
        heap_.assign(3 * kBytes, 'x');
        for (int i = 0; i < 64; ++i) small_.emplace_back(50'000, static_cast<char>('a' + i % 26));
        break;
      case 2:  // discarded, moved, written again in part
        ::madvise(fixed_, kBytes / 2, MADV_DONTNEED);
        discarded_ = true;
        added_ = static_cast<uint64_t*>(
                     ::mremap(added_ + 2 * kBytes / 8, 2 * kBytes, 3 * kBytes, MREMAP_MAYMOVE)) -
                 2 * kBytes / 8;
        moved_ = true;
        small_.resize(7);
        break;
      default:  // gone; another takes its place
        ::munmap(added_ + 2 * kBytes / 8, 3 * kBytes);
        added_ = nullptr;
        fixed_ = static_cast<uint64_t*>(::mmap(fixed_, kBytes, PROT_READ | PROT_WRITE,
                                               MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0));
        fill(fixed_, 512, 3);
        replaced_ = true;
    }
  }

  bool is_right() const {
    if (replaced_) return is_filled(fixed_, 512, 3) && is_zero(fixed_ + 512, kBytes / 8 - 512);
    const uint64_t half = kBytes / 16;
    if (discarded_ && !is_zero(fixed_, half)) return false;
    if (discarded_ && fixed_[half] != 1 + half * 0x9E3779B97F4A7C15ull) return false;
    if (!discarded_ && !is_filled(fixed_, kBytes / 8, 1)) return false;
    if (added_ == nullptr) return true;
    if (!moved_ && !is_filled(added_, kBytes / 8, 2)) return false;
    const uint64_t word = 2 * kBytes / 8;
    if (added_[word] != 2 + word * 0x9E3779B97F4A7C15ull) return false;
    if (moved_ && !is_zero(added_ + 4 * kBytes / 8, kBytes / 8)) return false;
    for (size_t i = 0; i < small_.size(); ++i) {
      if (!is_all(small_[i], static_cast<char>('a' + i % 26))) return false;
    }
    return is_all(heap_, 'x');
  }

  // Allocates nothing, so that the heap stays as it is.
  static bool is_all(const std::string& text, char letter) {
    return text.find_first_not_of(letter) == std::string::npos;
  }

  static bool is_zero(const uint64_t* words, uint64_t count) {
    for (uint64_t i = 0; i < count; ++i) {
      if (words[i] != 0) return false;
    }
    return true;
  }

  Report* report_;
  uint64_t* fixed_ = nullptr;
  uint64_t* added_ = nullptr;
  std::string heap_;
  std::vector<std::string> small_;
  bool discarded_ = false, moved_ = false, replaced_ = false;
};

void promote_after_steps(uint64_t steps) {
  ReportFile report;
  auto followed = std::make_unique<Followed>(
      [&](const std::function<void()>& ready) { Changer(report.map()).run(ready); });
  TestKeeper keeper;
  GroupImage image;
  for (uint64_t step = 0; step <= steps; ++step) {
    report->values[0] = step;
    CHECK(wait_for([&] { return report->values[1] == step && report->rounds > 3; }));
    followed->take_epoch();
    image = followed->image;
    keeper.apply(image, followed->staging);
    if (step < steps) followed->victim.go_on();
  }
  followed.reset();
  CHECK_EQUAL(report->errors.load(), 0u);
  const uint64_t before = report->rounds;
  keeper.promote(image);
  CHECK(wait_for([&] { return report->rounds > before + 5; }));
  CHECK_EQUAL(report->errors.load(), 0u);
  CHECK_EQUAL(maps_of_text(keeper.maps(image.processes[0].pid)), maps_of_image(image.processes[0]));
}

// A keeper that serves what is missing in a replica from the victim itself.
struct ServingKeeper {
  explicit ServingKeeper(pid_t pid)
      : memory(open_path("/proc/" + std::to_string(pid) + "/mem", O_RDONLY)),
        keeper(std::map<int32_t, int>{{pid, memory.get()}}) {}
  UniqueFd memory;
  TestKeeper keeper;
};

// Makes pages cold by their address.
template <class IsCold>
void make_cold(MemoryStaging& staging, IsCold is_cold) {
  std::vector<PageRun> runs;
  for (const PageRun& run : staging.runs) {
    for (uint64_t offset = 0; offset < run.length; offset += kPageSize) {
      PageRun& page = runs.emplace_back(run);
      page.address = run.address + offset;
      page.length = kPageSize;
      page.data_offset += offset;
      if (is_cold(page.address)) page.kind = PageRunKind::kCold;
    }
  }
  staging.runs = std::move(runs);
}

}  // namespace

TEST(replica_follows_changes_of_an_address_space) {
  for (uint64_t steps = 0; steps <= 3; ++steps) promote_after_steps(steps);
}

// A page that was copied while private memory was there, which a shared object replaced before the
// epoch ended.
TEST(replica_keeps_old_private_pages_out_of_shared_objects) {
  for (const int prot : {PROT_READ, PROT_READ | PROT_WRITE}) {
    ReportFile report;
    auto followed = std::make_unique<Followed>([&](const std::function<void()>& ready) {
      Report* mine = report.map();
      void* at =
          ::mmap(nullptr, kWords * 8, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
      if (at == MAP_FAILED) ::_exit(9);
      auto* words = static_cast<uint64_t*>(at);
      fill(words, kWords, 7);
      if (::mprotect(at, kWords * 8, prot) != 0) ::_exit(9);
      mine->values[0] = reinterpret_cast<uint64_t>(at);
      ready();
      self_check_loop(mine, words, 7);
    });
    CHECK(wait_for([&] { return report->rounds > 1; }));
    followed->take_epoch();
    std::ranges::fill(followed->staging.reserve(kPageSize), 0xee);
    PageRun old;
    old.pid = followed->victim.pid();
    old.address = report->values[0] + kPageSize;
    old.length = kPageSize;
    old.data_offset = followed->staging.keep(kPageSize);
    followed->staging.add(old);
    TestKeeper keeper;
    GroupImage image = followed->image;
    keeper.apply(image, followed->staging);
    end(followed, report);
    const uint64_t before = report->rounds;
    keeper.promote(image);
    CHECK(wait_for([&] { return report->rounds > before + 2; }));
    CHECK_EQUAL(report->errors.load(), 0u);
  }
}

TEST(lazy_memory_is_served_and_the_old_content_freed) {
  ReportFile report;
  constexpr uint64_t kBytes = 32 << 20;
  auto followed = std::make_unique<Followed>([&](const std::function<void()>& ready) {
    Report* mine = report.map();
    uint64_t* words = new_memory(kBytes);
    mine->values[1] = reinterpret_cast<uint64_t>(words);
    fill(words, kBytes / 8, 1);
    ready();
    for (uint64_t seed = 1;;) {
      if (mine->values[0] > seed) {
        seed = mine->values[0];
        fill(words, kBytes / 8, seed);
        mine->values[2] = seed;
      }
      if (!is_filled(words, kBytes / 8, seed)) ++mine->errors;
      ++mine->rounds;
      ::usleep(1000);
    }
  });
  followed->take_epoch();
  const pid_t pid = followed->victim.pid();
  ServingKeeper serving(pid);
  TestKeeper& keeper = serving.keeper;
  keeper.apply(followed->image, followed->staging);
  followed->victim.go_on();
  report->values[0] = 2;
  CHECK(wait_for([&] { return report->values[2] == 2; }));
  const uint64_t before_stop = report->rounds;
  CHECK(wait_for([&] { return report->rounds > before_stop + 1; }));
  followed->take_epoch();
  // All that was written outside of the array is copied, the array is read when touched.
  const uint64_t start = report->values[1];
  MemoryStaging rest;
  rest.pages = followed->staging.pages;
  for (const PageRun& run : followed->staging.runs) {
    if (run.address + run.length <= start || run.address >= start + kBytes)
      rest.runs.push_back(run);
  }
  keeper.apply(followed->image, rest);
  GroupImage image = followed->image;
  const uint64_t before = report->rounds;
  // Told in no order, and some of it twice.
  const uint64_t half = start + kBytes / 2;
  const KeeperAnswer promoted =
      keeper.promote(image, {{pid, half, start + kBytes}, {pid, start, half + kPageSize}});
  note("promoted with lazy memory in " + std::to_string(promoted.took_us) + " us");
  const KeeperAnswer freed = keeper.free_moved();
  CHECK_EQUAL(freed.resident_bytes, kBytes);
  CHECK(wait_for([&] { return report->rounds > before + 2; }, 20'000));
  CHECK_EQUAL(report->errors.load(), 0u);
  CHECK(keeper.free_moved().served_pages >= kBytes / 4096);
  CHECK_EQUAL(maps_of_text(keeper.maps(pid)), maps_of_image(image.processes[0]));
}

// A huge page over memory of which some pages are cold would make pages of zeros of these.
TEST(cold_pages_stay_missing_where_huge_pages_are_asked_for) {
  ReportFile report;
  constexpr uint64_t kHuge = 2 << 20, kBytes = 4 * kHuge;
  auto followed = std::make_unique<Followed>([&](const std::function<void()>& ready) {
    Report* mine = report.map();
    const auto room = reinterpret_cast<uint64_t>(new_memory(kBytes + kHuge));
    auto* words = reinterpret_cast<uint64_t*>((room + kHuge - 1) / kHuge * kHuge);  // NOLINT: in it
    ::madvise(words, kBytes, MADV_HUGEPAGE);
    mine->values[1] = reinterpret_cast<uint64_t>(words);
    fill(words, kBytes / 8, 1);
    ready();
    for (;;) {
      if (!is_filled(words, kBytes / 8, 1)) ++mine->errors;
      ++mine->rounds;
      ::usleep(1000);
    }
  });
  followed->take_epoch();
  const pid_t pid = followed->victim.pid();
  ServingKeeper serving(pid);
  TestKeeper& keeper = serving.keeper;
  // Of the array all pages are cold but one in each huge page's worth.
  const uint64_t start = report->values[1];
  make_cold(followed->staging, [&](uint64_t at) {
    return at >= start && at < start + kBytes && at % kHuge != 5 * kPageSize;
  });
  keeper.apply(followed->image, followed->staging);
  GroupImage image = followed->image;
  const uint64_t before = report->rounds;
  keeper.promote(image);
  CHECK(wait_for([&] { return report->rounds > before + 2; }, 20'000));
  CHECK_EQUAL(report->errors.load(), 0u);
  CHECK(keeper.free_moved().served_pages >= (kBytes - kBytes / kHuge * kPageSize) / kPageSize);
}

// Memory of which some is cold when it grows, becomes read-only, and is written.
TEST(cold_memory_that_changes_stays_one_mapping) {
  ReportFile report;
  constexpr uint64_t kPart = 1 << 20, kWhole = 3 * kPart;
  auto followed = std::make_unique<Followed>([&](const std::function<void()>& ready) {
    Report* mine = report.map();
    uint64_t* words = new_memory(kWhole, PROT_NONE);
    mine->values[1] = reinterpret_cast<uint64_t>(words);
    ::mprotect(words, kPart, PROT_READ | PROT_WRITE);
    fill(words, kPart / 8, 1);
    ready();
    uint64_t filled = kPart / 8, seed = 1;
    for (uint64_t step = 0;;) {
      if (mine->values[0] > step) {
        step = mine->values[0];
        if (step == 1) {  // what is new is filled in part
          ::mprotect(words, 2 * kPart, PROT_READ | PROT_WRITE);
          filled = (2 * kPart - 16 * kPageSize) / 8;
          fill(words, filled, seed = 2);
        } else if (step == 2) {
          fill(words, filled, seed = 3);
          ::mprotect(words, 2 * kPart, PROT_READ);
        } else {
          auto* moved = static_cast<uint64_t*>(::mremap(words, 2 * kPart, kWhole, MREMAP_MAYMOVE));
          if (moved == MAP_FAILED) ::_exit(9);
          words = moved;
        }
        mine->values[2] = step;
      }
      if (!is_filled(words, filled, seed)) ++mine->errors;
      ++mine->rounds;
      ::usleep(1000);
    }
  });
  const pid_t pid = followed->victim.pid();
  ServingKeeper serving(pid);
  TestKeeper& keeper = serving.keeper;
  const uint64_t start = report->values[1];
  for (uint64_t step = 0; step <= 2; ++step) {
    report->values[0] = step;
    const uint64_t rounds = report->rounds;
    CHECK(wait_for([&] { return report->values[2] == step && report->rounds > rounds + 1; }));
    followed->take_epoch();
    // Others each time, so that much of what gets written is cold; nothing when it has just grown.
    make_cold(followed->staging, [&](uint64_t at) {
      const bool inside = at >= start && at < start + (step == 0 ? 1 : 2) * kPart;
      return inside && step != 1 && at / kPageSize % 3 == step;
    });
    keeper.apply(followed->image, followed->staging);
    if (step < 2) followed->victim.go_on();
  }
  GroupImage image = followed->image;
  const uint64_t before = report->rounds;
  keeper.promote(image);
  CHECK(wait_for([&] { return report->rounds > before + 2; }, 20'000));
  CHECK_EQUAL(maps_of_text(keeper.maps(pid)), maps_of_image(image.processes[0]));
  report->values[0] = 3;
  CHECK(wait_for([&] { return report->values[2] == 3; }));
  CHECK(wait_for([&] { return report->rounds > before + 5; }));
  CHECK_EQUAL(report->errors.load(), 0u);
}

}  // namespace replpage::testing
