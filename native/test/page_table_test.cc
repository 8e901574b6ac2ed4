// The process state table against a model that keeps every page by itself.
#include "core/paging/page_table.h"

#include <algorithm>
#include <cstdio>
#include <functional>
#include <map>
#include <random>
#include <utility>

#include "core/base/clock.h"
#include "core/paging/pages_to_run.h"
#include "test/test.h"

namespace replpage {
namespace {

using namespace testing;  // NOLINT

constexpr auto kCold = PageRunKind::kCold;
constexpr uint64_t kGib = 1u << 30;

MappingImage anonymous(uint64_t start, uint64_t end, uint32_t flags = 0) {
  MappingImage mapping;
  mapping.start = start;
  mapping.end = end;
  mapping.flags = flags;
  return mapping;
}

PageRun run_of(int32_t pid, PageRunKind kind, uint64_t address, uint64_t pages,
               uint64_t location = 0) {
  PageRun run;
  run.pid = pid;
  run.kind = kind;
  run.address = address;
  run.length = pages * kPageSize;
  run.data_offset = location;
  return run;
}

struct ModelPage {
  bool cold = false, stored = false, pending = false, eligible = false, again = false;
  uint64_t location = 0;
  int touched = 0;
};

bool is_candidate(const ModelPage& page) {
  return !page.cold && page.eligible && !page.pending && !page.stored;
}

bool is_leaving(const ModelPage& page) { return !page.cold && (page.pending || page.stored); }

struct Model {
  struct Process {
    std::vector<MappingImage> mappings;
    std::map<uint64_t, ModelPage> pages;
  };
  std::map<int32_t, Process> processes;

  static const MappingImage* at(const Process& process, uint64_t address) {
    for (const MappingImage& mapping : process.mappings) {
      const bool inside = mapping.start <= address && address < mapping.end;
      if (inside && mapping.kind == MappingKind::kAnonymous) return &mapping;
    }
    return nullptr;
  }
  static bool pageable(const MappingImage& mapping) {
    return (mapping.flags & (kLocked | kGrowsDown)) == 0;
  }

  void fit(int32_t pid, const std::vector<MappingImage>& mappings) {
    Process& process = processes[pid];
    process.mappings = mappings;
    for (auto page = process.pages.begin(); page != process.pages.end();) {
      const MappingImage* const mapping = at(process, page->first);
      if (mapping == nullptr) {
        page = process.pages.erase(page);
        continue;
      }
      ModelPage& state = page->second;
      const bool was = std::exchange(state.eligible, pageable(*mapping));
      if (was && !state.eligible) {
        if (is_leaving(state)) state.pending = state.stored = false;
        if (state.cold) state.again = true;
        if (state.cold) state.touched = 0;
      }
      ++page;
    }
  }

  void note(const PageRun& run) {
    const auto found = processes.find(run.pid);
    if (run.pid == 0 || found == processes.end()) return;
    for (uint64_t i = 0; i < run.length; i += kPageSize) {
      const MappingImage* const mapping = at(found->second, run.address + i);
      if (mapping == nullptr) continue;
      auto& pages = found->second.pages;
      if (run.kind == PageRunKind::kZero || run.kind == PageRunKind::kAbsent) {
        pages.erase(run.address + i);
        continue;
      }
      const bool is_new = !pages.contains(run.address + i);
      ModelPage& page = pages[run.address + i];
      page.eligible = pageable(*mapping);
      page.cold = page.stored = run.kind == kCold;
      page.pending = false;
      page.again = page.cold && !page.eligible;
      page.location = page.cold ? run.data_offset + i : 0;
      if (!page.cold) page.touched = 0;
      if (page.cold && is_new) page.touched = kOldest;
    }
  }

  // Calls use(pid, address, page).
  void each(const std::function<void(int32_t, uint64_t, ModelPage&)>& use) {
    for (auto& [pid, process] : processes) {
      for (auto& [address, page] : process.pages) use(pid, address, page);
    }
  }
};

// Groups taken apart, as strings that a failed check can show.
std::vector<std::string> pages_of(const std::vector<PageGroup>& groups) {
  std::vector<std::string> pages;
  for (const PageGroup& group : groups) {
    for (uint64_t i = 0; i < group.range.bytes(); i += kPageSize) {
      pages.push_back(std::to_string(group.pid) + ":" + std::to_string(group.range.start + i) +
                      (group.stored ? "@" + std::to_string(group.location + i) : ""));
    }
  }
  return pages;
}

struct Pair {
  PageTable table;
  Model model;

  std::vector<std::string> those(const std::function<bool(const ModelPage&)>& wanted,
                                 size_t limit = SIZE_MAX) {
    std::vector<PageGroup> groups;
    model.each([&](int32_t pid, uint64_t address, const ModelPage& page) {
      if (!wanted(page) || groups.size() >= limit) return;
      groups.push_back({pid, {address, address + kPageSize}, page.stored, page.location});
    });
    return pages_of(groups);
  }

  void compare() {
    AgeHistogram resident{}, again{};
    PageSums sums;
    std::unordered_map<uint64_t, uint64_t> live;
    model.each([&](int32_t, uint64_t, const ModelPage& page) {
      if (is_candidate(page)) ++resident[static_cast<size_t>(page.touched)];
      if (is_candidate(page)) sums.candidate_bytes += kPageSize;
      if (page.again) ++again[static_cast<size_t>(page.touched)];
      (page.cold ? sums.cold_bytes : sums.resident_bytes) += kPageSize;
      if (is_leaving(page)) sums.pending_bytes += kPageSize;
      if (page.stored) ++live[segment_of(page.location)];
    });
    for (const auto& [pid, process] : model.processes) {
      for (const MappingImage& mapping : process.mappings) {
        const bool counts = mapping.kind == MappingKind::kAnonymous;
        if (counts) sums.absent_bytes += mapping.end - mapping.start;
      }
    }
    sums.absent_bytes -= sums.resident_bytes + sums.cold_bytes;
    CHECK(table.sums() == sums);
    CHECK(table.resident_ages() == resident);
    CHECK(table.touched_again_ages() == again);
    CHECK(table.live_pages() == live);
    CHECK(pages_of(table.oldest(3, 100)) ==
          those([](const ModelPage& p) { return is_candidate(p) && p.touched >= 3; }, 100));
    CHECK(pages_of(table.touched_again(2, 50)) ==
          those([](const ModelPage& p) { return p.again && p.touched <= 2; }, 50));
    CHECK(pages_of(table.cold_pages(SIZE_MAX)) == those([](const ModelPage& p) { return p.cold; }));
    const std::vector<uint64_t> segments{1, 3};
    CHECK(pages_of(table.pages_in(segments, SIZE_MAX)) == those([](const ModelPage& p) {
            const uint64_t segment = segment_of(p.location);
            return p.stored && (segment == 1 || segment == 3);
          }));
  }
};

class RandomOperations {
 public:
  explicit RandomOperations(uint32_t seed) : random_(seed) {}

  void step(Pair& pair) {
    const int32_t pid = 1 + static_cast<int32_t>(below(3));
    const uint64_t page = below(kPages);
    const uint64_t count = 1 + below(below(4) == 0 ? 700 : 12);
    const uint64_t at = kStart + page * kPageSize;
    const uint64_t location = below(5) << 42 | below(1000) * kPageSize;
    const PageRange range{at, at + count * kPageSize};
    switch (below(10)) {
      case 0:
        return below(6) == 0 ? fit(pair, pid) : touch(pair, pid, range);
      case 1:
        return older(pair, pid);
      case 2:
        return note(pair, run_of(pid, kCold, at, count, location));
      case 3:
        return note(pair, run_of(pid, below(2) != 0 ? PageRunKind::kZero : PageRunKind::kAbsent, at,
                                 count));
      case 4:
        return pending(pair, {pid, range, false, 0});
      case 5:
        return stored(pair, {pid, range, true, location});
      case 6:
        return below(3) == 0 ? not_stored(pair, {pid, range, false, 0})
                             : moved(pair, {pid, range, true, location});
      case 7:
        return below(4) == 0 ? take_again(pair) : touch(pair, pid, range);
      default:
        return note(pair, run_of(below(20) == 0 ? 0 : pid, PageRunKind::kData, at, count));
    }
  }

 private:
  static constexpr uint64_t kPages = 3000;
  static constexpr uint64_t kStart = 5 * kGib - 1000 * kPageSize;  // two regions

  uint64_t below(uint64_t bound) { return random_() % bound; }

  void fit(Pair& pair, int32_t pid) {
    if (below(8) == 0) {
      pair.table.forget(pid);
      pair.model.processes.erase(pid);
      return;
    }
    std::vector<MappingImage> mappings;
    for (uint64_t page = below(50); page < kPages;) {
      const uint64_t length = 1 + below(1200);
      const uint32_t flags[] = {0, 0, 0, kLocked, kGrowsDown};
      mappings.push_back(anonymous(kStart + page * kPageSize, kStart + (page + length) * kPageSize,
                                   flags[below(5)]));
      if (below(6) == 0) mappings.back().kind = MappingKind::kFilePrivate;
      page += length + below(2) * below(100);
    }
    pair.table.fit(pid, mappings);
    pair.model.fit(pid, mappings);
  }
  void note(Pair& pair, const PageRun& run) {
    pair.table.note_runs({&run, 1});
    pair.model.note(run);
  }
  void older(Pair& pair, int32_t pid) {
    pair.table.grow_older(pid);
    for (auto& [address, page] : pair.model.processes[pid].pages) {
      page.touched = std::min(page.touched + 1, int{kOldest});
    }
    if (pair.model.processes[pid].mappings.empty()) pair.table.fit(pid, {});
  }
  static void in_range(Pair& pair, const PageGroup& group,
                       const std::function<void(ModelPage&, uint64_t)>& use) {
    for (auto& [address, page] : pair.model.processes[group.pid].pages) {
      if (group.range.contains(address)) use(page, address - group.range.start);
    }
  }
  void touch(Pair& pair, int32_t pid, PageRange range) {
    pair.table.note_touched(pid, {&range, 1});
    in_range(pair, {pid, range, false, 0}, [](ModelPage& page, uint64_t) {
      page.touched = 0;
      if (page.cold) page.again = true;
    });
  }
  static void take_again(Pair& pair) {
    const auto wanted = [](const ModelPage& page) { return page.again && page.touched <= 1; };
    const auto expected = pair.those(wanted, 20);
    CHECK(pages_of(pair.table.take_touched_again(1, 20)) == expected);
    int left = 20;
    pair.model.each([&](int32_t, uint64_t, ModelPage& page) {
      if (wanted(page) && left-- > 0) page.again = false;
    });
  }
  static void pending(Pair& pair, const PageGroup& group) {
    pair.table.note_pending(group);
    in_range(pair, group, [](ModelPage& page, uint64_t) {
      if (is_candidate(page)) page.pending = true;
    });
  }
  static void stored(Pair& pair, const PageGroup& group) {
    std::vector<PageGroup> expected;
    for (auto& [address, page] : pair.model.processes[group.pid].pages) {
      if (!group.range.contains(address) || !std::exchange(page.pending, false)) continue;
      page.stored = true;
      page.location = group.location + (address - group.range.start);
      expected.push_back({group.pid, {address, address + kPageSize}, true, page.location});
    }
    CHECK(pages_of(pair.table.note_stored(group)) == pages_of(expected));
  }
  static void not_stored(Pair& pair, const PageGroup& group) {
    pair.table.note_not_stored(group);
    in_range(pair, group, [](ModelPage& page, uint64_t) {
      if (is_leaving(page)) page.pending = page.stored = false;
    });
  }
  void moved(Pair& pair, PageGroup group) {
    // Mostly one that is there.
    const auto cold = pair.table.cold_pages(SIZE_MAX);
    if (!cold.empty() && below(4) != 0) group = cold[below(cold.size())];
    const uint64_t to = below(5) << 42 | 5000 * kPageSize;
    uint64_t expected = 0;
    in_range(pair, group, [&](ModelPage& page, uint64_t offset) {
      if (!page.stored || page.location != group.location + offset) return;
      page.location = to + offset;
      ++expected;
    });
    CHECK_EQUAL(pair.table.note_moved(group, to), expected);
  }

  std::mt19937 random_;
};

TEST(page_table_agrees_with_a_model_through_random_operations) {
  for (uint32_t seed = 1; seed <= 40; ++seed) {
    Pair pair;
    for (int32_t pid = 1; pid <= 3; ++pid) {
      const std::vector<MappingImage> all{anonymous(5 * kGib - 1000 * kPageSize, 6 * kGib)};
      pair.table.fit(pid, all);
      pair.model.fit(pid, all);
    }
    RandomOperations operations(seed);
    for (int i = 0; i < 300; ++i) {
      operations.step(pair);
      if (i % 5 == 0) pair.compare();
    }
  }
}

TEST(page_table_saturates_ages) {
  PageTable table;
  const std::vector<MappingImage> mappings{anonymous(kGib, 2 * kGib)};
  table.fit(1, mappings);
  const PageRun run = run_of(1, PageRunKind::kData, kGib, 10);
  table.note_runs({&run, 1});
  for (int i = 0; i < 300; ++i) table.grow_older(1);
  CHECK_EQUAL(table.resident_ages()[kOldest], 10u);
}

TEST(page_table_keeps_what_a_thread_begins_with) {
  const PageRange range{kGib, kGib + 100 * kPageSize};
  const auto page = [](uint64_t number) { return kGib + number * kPageSize; };
  ProcessImage process;
  process.mappings = {anonymous(range.start, range.end)};
  process.threads.resize(2);
  process.threads[0].registers.rsp = page(10) + 64;  // the red zone is on the page before
  process.threads[0].rseq = {.pointer = page(20) + 8, .size = 32, .signature = 0, .flags = 0};
  process.threads[1].registers.rsp = UINT64_MAX;
  process.threads[1].robust_list = page(31) - 8;
  process.threads[1].robust_list_size = 24;
  process.threads[1].clear_child_tid = page(40);
  const PageRanges kept = pages_to_run(process);
  CHECK(
      (kept ==
       PageRanges{
           {page(9), page(11)}, {page(20), page(21)}, {page(30), page(32)}, {page(40), page(41)}}));

  PageTable table;
  table.fit(1, process.mappings, kept);
  const PageRun all = run_of(1, PageRunKind::kData, kGib, 100);
  table.note_runs({&all, 1});
  uint64_t candidates = 0;
  for (const PageGroup& group : table.oldest(0, 1000)) candidates += group.range.pages();
  CHECK_EQUAL(candidates, 94u);
  // One that is cold when a thread comes to need it is to be brought back, and what a thread has
  // left may go.
  const PageRun cold = run_of(1, kCold, page(50), 1, 7ull << 42);
  table.note_runs({&cold, 1});
  process.threads[0].registers.rsp = page(50) + 2048;
  table.fit(1, process.mappings, pages_to_run(process));
  const auto back = table.take_touched_again(kOldest, 1000);
  CHECK(back.size() == 1 && (back[0].range == PageRange{page(50), page(51)}));
  candidates = 0;
  for (const PageGroup& group : table.oldest(0, 1000)) candidates += group.range.pages();
  CHECK_EQUAL(candidates, 95u);
}

TEST(page_table_describes_mappings_in_cells) {
  PageTable table;
  const PageRange range{kGib, kGib + 100 * kPageSize};
  const std::vector<MappingImage> mappings{anonymous(range.start, range.end)};
  table.fit(1, mappings);
  const PageRun runs[] = {run_of(1, PageRunKind::kData, kGib, 60),
                          run_of(1, kCold, kGib + 40 * kPageSize, 30, 7ull << 42)};
  table.note_runs(runs);
  table.grow_older(1);
  table.grow_older(1);
  const PageRange touched{kGib, kGib + 5 * kPageSize};
  table.note_touched(1, {&touched, 1});
  const auto whole = table.describe(1, range, 1);
  CHECK_EQUAL(whole.size(), 1u);
  CHECK((whole[0] == PageCounts{.hot = 5, .warm = 35, .cold = 30, .absent = 30}));
  const auto cells = table.describe(1, range, 1, 3);
  CHECK_EQUAL(cells.size(), 3u);
  CHECK((cells[0] == PageCounts{.hot = 5, .warm = 29, .cold = 0, .absent = 0}));
  CHECK((cells[1] == PageCounts{.hot = 0, .warm = 6, .cold = 28, .absent = 0}));
  CHECK((cells[2] == PageCounts{.hot = 0, .warm = 0, .cold = 2, .absent = 30}));
  CHECK((table.describe(9, range, 1)[0] ==
         PageCounts{.hot = 0, .warm = 0, .cold = 0, .absent = 100}));
}

TEST(page_table_gives_its_memory_back) {
  PageTable table;
  const std::vector<MappingImage> mappings{anonymous(kGib, 3 * kGib)};
  table.fit(1, mappings);
  const uint64_t before = table.memory_bytes();
  const PageRun cold = run_of(1, kCold, kGib, 200'000);
  table.note_runs({&cold, 1});
  CHECK(table.memory_bytes() <= before + 200'000 * 12);
  const PageRun absent = run_of(1, PageRunKind::kAbsent, kGib, 200'000);
  table.note_runs({&absent, 1});
  CHECK_EQUAL(table.memory_bytes(), before);
  CHECK(table.live_pages().empty());
}

TEST(page_table_figures) {
  PageTable table;
  constexpr uint64_t kPagesMax = 10 * kGib / kPageSize;
  const std::vector<MappingImage> mappings{anonymous(kGib, 11 * kGib)};
  table.fit(1, mappings);
  const auto time = [](const char* what, const std::function<void()>& work) {
    const uint64_t start = now_ns();
    work();
    char text[120];
    std::snprintf(text, sizeof text, "%s: %.2f ms", what,
                  static_cast<double>(now_ns() - start) / 1e6);
    note(text);
  };
  const auto memory = [&](const char* what) {
    char text[120];
    std::snprintf(text, sizeof text, "%s: %.2f bytes a page", what,
                  static_cast<double>(table.memory_bytes()) / static_cast<double>(kPagesMax));
    note(text);
  };
  const PageRun all = run_of(1, PageRunKind::kData, kGib, kPagesMax);
  time("note_runs, 10 GiB in one run", [&] { table.note_runs({&all, 1}); });
  memory("resident");
  std::vector<PageRun> singles;
  for (uint64_t i = 0; i < 100'000; ++i) {
    singles.push_back(run_of(1, PageRunKind::kData, kGib + i * 26 * kPageSize, 1));
  }
  time("note_runs, 100,000 single pages", [&] { table.note_runs(singles); });
  time("grow_older, 10 GiB", [&] { table.grow_older(1); });
  const PageRange gib{kGib, 2 * kGib};
  time("note_touched, 1 GiB in one range", [&] { table.note_touched(1, {&gib, 1}); });
  PageRanges scattered;
  for (uint64_t at = kGib; at < 2 * kGib; at += 3 * kPageSize) {
    scattered.push_back({at, at + kPageSize});
  }
  time("note_touched, every third page of 1 GiB", [&] { table.note_touched(1, scattered); });
  time("resident_ages, 10 GiB", [&] { (void)table.resident_ages(); });
  time("oldest, 65,536 pages", [&] { (void)table.oldest(1, 1 << 16); });
  const PageRun cold = run_of(1, kCold, kGib, kPagesMax, 0);
  time("note_runs, 10 GiB cold in one run", [&] { table.note_runs({&cold, 1}); });
  memory("cold");
  time("note_runs, 100,000 single pages that were cold", [&] { table.note_runs(singles); });
  time("note_touched, every third page of 1 GiB, cold", [&] { table.note_touched(1, scattered); });
  time("touched_again_ages, 10 GiB", [&] { (void)table.touched_again_ages(); });
  time("forget", [&] { table.forget(1); });
}

}  // namespace
}  // namespace replpage
