// Paging of a group with a real pager and store, and a model of what the replica was told: what it
// would read from the store is what its primary has, whenever that was written.
#include "core/group/group_paging.h"

#include <sys/fanotify.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include <algorithm>
#include <csignal>
#include <random>
#include <set>

#include "core/base/clock.h"
#include "test/store_fixture.h"

namespace replpage {
namespace {

using namespace testing;

constexpr int32_t kPid = 5;
constexpr size_t kPages = 2048;
constexpr pid_t kNoProcess = 0x3fffffff;  // more than any kernel gives
constexpr uint64_t kColdAfterUs = 1'000'000;
constexpr PagingOrder kEvictAll{
    .evict_age = 1, .evict_pages_max = kPages, .bring_back_age = 0, .bring_back_pages_max = 0};

std::string pager_path() {
  const std::string self = std::filesystem::read_symlink("/proc/self/exe");
  return self.substr(0, self.rfind('/')) + "/replpage-pager";
}

// A primary whose memory is ours too, and what its replica has: pages in RAM, or at a location.
class Group {
 public:
  explicit Group(uint64_t store_bytes_max = UINT64_MAX,
                 AccessTrackerKind tracker = AccessTrackerKind::kWriteRecency) {
    if (::access(pager_path().c_str(), X_OK) != 0) SKIP("replpage-pager is not built");
    memory_ = static_cast<uint8_t*>(::mmap(nullptr, kPages * kPageSize, PROT_READ | PROT_WRITE,
                                           MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    host_pid_ = ::fork();
    if (host_pid_ == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      for (;;) ::pause();
    }
    MappingImage mapping;
    mapping.start = address(0);
    mapping.end = address(kPages);
    ProcessImage process;
    process.pid = kPid;
    process.mappings.push_back(mapping);
    image_.processes.push_back(process);
    GroupOptions options;
    options.name = test_generation().group;
    options.generation = test_generation().generation;
    options.paging = PagingOptions{.pager_path = pager_path(),
                                   .store = folder_,
                                   .key_path = folder_ + "/key",
                                   .group_id = test_generation().group_id,
                                   .store_bytes_max = store_bytes_max,
                                   .allow_memory_file_systems = true,
                                   .segment_bytes_max = 1 << 20,
                                   .cold_after_us = kColdAfterUs,
                                   .tracker = tracker};
    paging_.emplace(options);
    paging_->wait_open(20'000'000);
    CHECK(paging_->store_for_replica().has_value());
    for (size_t page = 0; page < kPages; ++page) write(page);
    epoch();
  }
  ~Group() {
    paging_.reset();
    end_primary();
    ::munmap(memory_, kPages * kPageSize);
  }
  Group(const Group&) = delete;
  Group& operator=(const Group&) = delete;

  void end_primary() {
    ::kill(host_pid_, SIGKILL);
    ::waitpid(host_pid_, nullptr, 0);
    host_pid_ = kNoProcess;
  }

  void write(size_t page) {
    const std::vector<uint8_t> content = test_pages(++seed_, 1, true);
    std::memcpy(memory_ + page * kPageSize, content.data(), kPageSize);
    dirty_.insert(page);
  }

  // What was written since the last one, and what is cold from now on.
  void epoch() {
    ++image_.epoch;
    PageRunList list;
    for (const size_t page : std::exchange(dirty_, {})) add_data(list, page);
    for (const size_t page : std::exchange(wanted_, {})) add_data(list, page);
    paging_->add_cold_runs(image_, list);
    for (const PageRun& run : list.runs) {
      for (uint64_t offset = 0; offset < run.length; offset += kPageSize) {
        const size_t page = (run.address + offset - address(0)) / kPageSize;
        if (run.kind == PageRunKind::kData) cold_.erase(page);
        if (run.kind == PageRunKind::kCold) cold_[page] = run.data_offset + offset;
      }
    }
    paging_->note_committed();
  }

  PagingReport turn(const PagingOrder& order = {}) {
    const PagingReport report = paging_->turn(image_, {{kPid, host_pid_}}, order);
    for (const PageRun& run : paging_->take_wanted_back()) {
      for (uint64_t offset = 0; offset < run.length; offset += kPageSize) {
        wanted_.insert((run.address + offset - address(0)) / kPageSize);
      }
    }
    return report;
  }

  // Every cold page of the replica is what the primary had at the last epoch; nothing is to be
  // dirty.
  void check_cold() {
    const StoreKey key = StoreKey::load_or_make(folder_ + "/key");
    SegmentReader reader = make_reader(folder_, &key);
    std::vector<uint8_t> content(kPageSize);
    for (const auto& [page, location] : cold_) {
      reader.read(location, kPid, address(page), content);
      CHECK(std::memcmp(content.data(), memory_ + page * kPageSize, kPageSize) == 0);
    }
  }

  [[nodiscard]] uint64_t address(size_t page) const {
    return reinterpret_cast<uint64_t>(memory_) + page * kPageSize;
  }
  [[nodiscard]] std::string generation() const {
    return folder_ + "/" + generation_path(test_generation());
  }
  [[nodiscard]] const std::map<size_t, uint64_t>& cold() const { return cold_; }

 private:
  void add_data(PageRunList& list, size_t page) const {
    list.runs.push_back({.pid = kPid,
                         .object = 0,
                         .kind = PageRunKind::kData,
                         .address = address(page),
                         .length = kPageSize,
                         .data_offset = 0});
  }

  const std::string folder_ = test_folder();
  uint8_t* memory_ = nullptr;
  pid_t host_pid_ = 0;
  GroupImage image_;
  std::optional<GroupPaging> paging_;
  std::set<size_t> dirty_, wanted_;
  std::map<size_t, uint64_t> cold_;  // by page
  uint64_t seed_ = 0;
};

uint64_t end_after_us(uint64_t milliseconds) {
  return now_us() + milliseconds * 1000 * static_cast<uint64_t>(slowness());
}

template <class Condition>
bool within(uint64_t milliseconds, Condition condition) {
  const uint64_t end_us = end_after_us(milliseconds);
  while (now_us() < end_us) {
    if (condition()) return true;
    ::usleep(20'000);
  }
  return condition();
}

TEST(group_paging_makes_old_pages_cold) {
  Group group;
  CHECK(within(10'000, [&] {
    (void)group.turn(kEvictAll);
    group.epoch();
    return group.cold().size() == kPages;
  }));
  group.check_cold();
  for (size_t page = 0; page < kPages; page += 3) group.write(page);
  group.epoch();
  CHECK_EQUAL(group.cold().size(), kPages - (kPages + 2) / 3);
  group.check_cold();
}

// Where nobody can look, nothing gets older: or all of it would be cold in the end.
TEST(group_paging_lets_nothing_grow_older_unseen) {
  Group group(UINT64_MAX, AccessTrackerKind::kIdleBitmap);
  group.end_primary();
  PagingOrder order = kEvictAll;
  order.sample_now = true;
  PagingReport report;
  for (int i = 0; i < 5; ++i) report = group.turn(order);
  CHECK(report.samples >= 5);
  CHECK(report.ages.size() > 1);
  for (size_t age = 1; age < report.ages.size(); ++age) CHECK_EQUAL(report.ages[age], 0u);
  CHECK(report.tracker.starts_with("none ("));
}

// The pager has read a page, hangs, and answers when the page was written and is old again.
TEST(group_paging_takes_no_old_answer_for_a_page_written_since) {
  Group group;
  UniqueFd hung(::fanotify_init(FAN_CLASS_CONTENT | FAN_CLOEXEC, O_RDONLY));
  if (!hung.valid()) SKIP("no fanotify with permissions here");
  CHECK(::fanotify_mark(hung.get(), FAN_MARK_ADD, FAN_OPEN_PERM | FAN_EVENT_ON_CHILD, AT_FDCWD,
                        group.generation().c_str()) == 0);
  CHECK(within(5000, [&] { return group.turn(kEvictAll).pending_bytes != 0; }));
  ::usleep(500'000);  // it has read what fits its buffer, and makes a segment
  for (size_t page = 0; page < kPages; ++page) group.write(page);
  group.epoch();
  for (int i = 0; i < 20; ++i) {
    ::usleep(50'000);
    (void)group.turn(kEvictAll);
  }
  hung.reset();
  CHECK(within(10'000, [&] {
    (void)group.turn(kEvictAll);
    group.epoch();
    group.check_cold();
    return group.cold().size() == kPages;
  }));
}

// A program that rewrites its cold memory without order leaves a few pages in every segment.
TEST(group_paging_empties_sparse_segments) {
  Group group;
  std::mt19937 random(11);
  constexpr uint64_t kBytes = kPages * kPageSize;
  uint64_t most = 0;
  PagingReport report;
  // Work is what counts, not how long a machine takes for it.
  const uint64_t end_us = end_after_us(60'000);
  while (report.written_bytes < 16 * kBytes && now_us() < end_us) {
    for (int i = 0; i < 60; ++i) group.write(random() % (kPages * 7 / 8));
    group.epoch();
    (void)group.turn(kEvictAll);
    // No faster than a slow machine stores, or it could keep no bound.
    CHECK(within(10'000, [&] {
      group.epoch();
      return (report = group.turn()).pending_bytes == 0;
    }));
    ::usleep(30'000);
    if (report.written_bytes > 3 * kBytes) most = std::max(most, report.store_bytes);
  }
  group.epoch();
  group.check_cold();
  note(std::to_string(report.written_bytes >> 20) + " MiB written, of them " +
       std::to_string(report.moved_bytes >> 20) + " MiB anew; the store has at most " +
       std::to_string(most >> 10) + " KiB of " + std::to_string(kBytes >> 10));
  CHECK(report.moved_bytes > 0);
  CHECK(most != 0 && most < 3 * kBytes);
}

// Where even that does not fit, pages come back into RAM, and room is made.
TEST(group_paging_makes_room_in_a_full_store) {
  Group group(kPages * kPageSize * 5 / 4);
  std::mt19937 random(12);
  PagingReport report;
  uint64_t cold_when_full = 0;
  const uint64_t end_us = end_after_us(30'000);
  while (now_us() < end_us) {
    if (report.store != StoreState::kFull) {
      for (int i = 0; i < 60; ++i) group.write(random() % kPages);
    } else if (cold_when_full == 0) {
      cold_when_full = report.written_bytes;
    }
    group.epoch();
    report = group.turn(report.store == StoreState::kFull ? PagingOrder{} : kEvictAll);
    if (cold_when_full != 0 && report.written_bytes > cold_when_full + (1 << 20)) break;
    ::usleep(30'000);
  }
  group.epoch();
  group.check_cold();
  note(std::to_string(report.brought_back_bytes >> 10) + " KiB came back");
  CHECK(cold_when_full != 0 && report.written_bytes > cold_when_full + (1 << 20));
}

size_t segments_in(const std::string& folder) {
  size_t count = 0;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    count += entry.path().filename().string().starts_with("segment") ? 1 : 0;
  }
  return count;
}

// A pager that is killed before it has removed what it was told to: the next one does.
TEST(group_paging_removes_what_a_killed_pager_was_to_remove) {
  Group group;
  CHECK(within(10'000, [&] {
    (void)group.turn(kEvictAll);
    group.epoch();
    return group.cold().size() == kPages;
  }));
  const size_t before = segments_in(group.generation());
  CHECK(before > 2);
  const pid_t pager = group.turn().pager_pid;
  CHECK(pager > 0);
  for (size_t page = 0; page < kPages; ++page) group.write(page);
  ::kill(pager, SIGSTOP);
  group.epoch();  // names all but the newest segment
  (void)group.turn();
  ::kill(pager, SIGKILL);
  CHECK(within(30'000, [&] {
    const PagingReport report = group.turn();
    group.epoch();
    return report.store_segments <= 1 && segments_in(group.generation()) <= 1;
  }));
  note(std::to_string(before) + " segments before");
}

}  // namespace
}  // namespace replpage
