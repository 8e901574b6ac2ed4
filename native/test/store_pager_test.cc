#include <poll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include <array>
#include <csignal>
#include <random>

#include "core/base/clock.h"
#include "core/link/pager_link.h"
#include "test/store_fixture.h"

namespace replpage {
namespace {

using namespace testing;

constexpr uint64_t kWaitUs = 20'000'000;

std::string pager_path() {
  const std::string self = std::filesystem::read_symlink("/proc/self/exe");
  return self.substr(0, self.rfind('/')) + "/replpage-pager";
}

PagerOptions pager_options(const std::string& folder) {
  if (::access(pager_path().c_str(), X_OK) != 0) SKIP("replpage-pager is not built");
  return {.executable = pager_path(),
          .store = folder,
          .group = test_generation().group,
          .group_id = test_generation().group_id,
          .generation = test_generation().generation,
          .key = std::make_shared<const StoreKey>(StoreKey::from_bytes(test_key().bytes())),
          .rights = std::nullopt,
          .restart_delay_us = 1000,
          .restart_delay_max_us = 8000};
}

// Waits for the next news, at most kWaitUs.
PagerNews next_news(PagerLink& link) {
  static std::map<PagerLink*, std::deque<PagerNews>> waiting;
  std::deque<PagerNews>& queue = waiting[&link];
  const uint64_t end_us = now_us() + kWaitUs * static_cast<uint64_t>(slowness());
  while (queue.empty() && now_us() < end_us) {
    for (PagerNews& news : link.poll()) queue.push_back(std::move(news));
    pollfd item{.fd = link.fd(), .events = POLLIN, .revents = 0};
    if (queue.empty()) ::poll(&item, 1, 1);
  }
  CHECK(!queue.empty());
  PagerNews news = std::move(queue.front());
  queue.pop_front();
  return news;
}

// The next news of one kind; others before it are passed over.
template <class T>
T await(PagerLink& link) {
  for (;;) {
    PagerNews news = next_news(link);
    if (auto* wanted = std::get_if<T>(&news)) return std::move(*wanted);
  }
}

// A process with an area of memory that we have mapped too.
class Victim {
 public:
  explicit Victim(size_t pages) : bytes_(pages * kPageSize) {
    memory_ = static_cast<uint8_t*>(
        ::mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    pid_ = ::fork();
    if (pid_ == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      for (;;) ::pause();
    }
    at_end([pid = pid_] { ::kill(pid, SIGKILL); });
  }
  ~Victim() { end(); }
  Victim(const Victim&) = delete;
  Victim& operator=(const Victim&) = delete;

  void end() {
    if (pid_ == 0) return;
    ::kill(pid_, SIGKILL);
    ::waitpid(std::exchange(pid_, 0), nullptr, 0);
  }
  void put(size_t page, uint64_t seed, size_t pages = 1) {
    const std::vector<uint8_t> content = test_pages(seed, pages, seed % 2 == 0);
    std::memcpy(memory_ + page * kPageSize, content.data(), content.size());
  }
  [[nodiscard]] UniqueFd source() const {
    return UniqueFd(
        ::open(("/proc/" + std::to_string(pid_) + "/mem").c_str(), O_RDONLY | O_CLOEXEC));
  }
  [[nodiscard]] uint64_t address(size_t page = 0) const {
    return reinterpret_cast<uint64_t>(memory_) + page * kPageSize;
  }
  [[nodiscard]] PagerRun run(size_t page, uint32_t pages) const {
    return {.address = address(page), .offset = address(page), .pid = 5, .pages = pages};
  }
  [[nodiscard]] const uint8_t* page(size_t number) const { return memory_ + number * kPageSize; }

 private:
  size_t bytes_;
  uint8_t* memory_ = nullptr;
  pid_t pid_ = 0;
};

bool reads_back(SegmentReader& reader, const PagerWrittenRun& run, const Victim& victim) {
  std::vector<uint8_t> content(run.pages * kPageSize);
  reader.read(run.location, run.pid, run.address, content);
  return std::memcmp(content.data(), reinterpret_cast<const uint8_t*>(run.address),
                     content.size()) == 0 &&
         run.address >= victim.address();
}

TEST(pager_writes_a_process_s_pages) {
  const std::string folder = test_folder();
  Victim victim(1200);
  for (size_t page = 0; page < 1200; ++page) {
    if (page % 10 != 3) victim.put(page, page + 1);
  }
  PagerLink link(pager_options(folder));
  CHECK(!link.ready() && !link.submit(1, {}));
  await<PagerOpened>(link);
  link.set_source(0, victim.source());
  // The hole behind the area is not readable, and what comes after it is.
  PagerRun beyond = victim.run(0, 1);
  beyond.address = beyond.offset = 0x1000;
  const auto ticket = link.submit(42, {victim.run(0, 1000), beyond, victim.run(1100, 100)});
  CHECK(ticket && link.since_us() > 0);
  const auto written = await<PagerWrittenMessage>(link);
  CHECK(written.ticket == *ticket && written.epoch == 42);
  CHECK_EQUAL(written.zero_pages, 110u);
  CHECK_EQUAL(written.unreadable_pages, 1u);
  CHECK(link.since_us() == 0 && written.usage.bytes > 0 && written.usage.next_segment == 2);
  uint32_t pages = 0;
  SegmentReader reader = make_reader(folder, &test_key());
  for (const PagerWrittenRun& run : written.runs) {
    CHECK(reads_back(reader, run, victim));
    pages += run.pages;
  }
  CHECK_EQUAL(pages, 990u);
  CHECK(link.usage().bytes == written.usage.bytes);
}

TEST(pager_reads_other_descriptors_and_survives_a_gone_process) {
  const std::string folder = test_folder();
  PagerLink link(pager_options(folder));
  await<PagerOpened>(link);
  const std::vector<uint8_t> content = test_pages(3, 4, true);
  UniqueFd staging(::memfd_create("staging", MFD_CLOEXEC));
  CHECK(::pwrite(staging.get(), content.data(), content.size(), 1 << 20) ==
        static_cast<ssize_t>(content.size()));
  link.set_source(9, std::move(staging));
  const PagerRun staged{.address = 0x7000, .offset = 1 << 20, .pid = 3, .source = 9, .pages = 10};
  link.submit(1, {staged});
  auto written = await<PagerWrittenMessage>(link);
  CHECK_EQUAL(written.runs.size(), 1u);
  CHECK(written.runs[0].pages == 4 && written.unreadable_pages == 6);
  SegmentReader reader = make_reader(folder, &test_key());
  std::vector<uint8_t> got(content.size());
  reader.read(written.runs[0].location, 3, 0x7000, got);
  CHECK(got == content);

  Victim victim(16);
  victim.put(0, 2, 16);
  link.set_source(1, victim.source());
  PagerRun run = victim.run(0, 16);
  run.source = 1;
  victim.end();
  link.submit(2, {run});
  written = await<PagerWrittenMessage>(link);
  CHECK(written.runs.empty() && written.unreadable_pages == 16);
  link.forget_source(1);
  link.submit(3, {run});  // what it was never sent
  CHECK(await<PagerFailedMessage>(link).kind == StoreFailure::kIo);
  await<PagerEnded>(link);
}

TEST(pager_killed_at_any_moment_keeps_what_it_answered) {
  constexpr uint32_t kPages = 4096;
  const std::string folder = test_folder();
  Victim victim(kPages);
  for (size_t page = 0; page < kPages; ++page) victim.put(page, page + 1);
  PagerOptions options = pager_options(folder);
  options.segment_bytes_max = 4 << 20;
  PagerLink link(options);
  link.set_source(0, victim.source());
  std::mt19937 random(11);
  std::vector<PagerWrittenRun> runs;
  std::map<uint64_t, int> open_tickets;
  uint64_t failed = 0, opened = 0, ended = 0;
  for (int kills = 0; kills < 200; ++kills) {
    // Some while it starts, some after it has written, most at any moment between.
    const bool early = kills % 5 == 0;
    const bool late = kills % 5 == 1;
    const uint64_t opened_before = opened;
    const size_t runs_before = runs.size();
    const uint64_t window_us = random() % 15'000;
    uint64_t kill_us = now_us() + (early ? window_us : kWaitUs);
    while (now_us() < kill_us) {
      const bool begun = late ? runs.size() > runs_before : opened > opened_before;
      if (!early && begun) kill_us = std::min(kill_us, now_us() + window_us);
      const uint32_t pages = 1 + random() % 500;
      const auto ticket = link.submit(1, {victim.run(random() % (kPages - pages), pages)});
      if (ticket) open_tickets[*ticket] = 1;
      for (const PagerNews& news : link.poll()) {
        if (const auto* written = std::get_if<PagerWrittenMessage>(&news)) {
          CHECK_EQUAL(open_tickets.erase(written->ticket), 1u);
          runs.insert(runs.end(), written->runs.begin(), written->runs.end());
        } else if (const auto* failure = std::get_if<PagerFailedMessage>(&news)) {
          CHECK(failure->kind == StoreFailure::kIo);
          CHECK_EQUAL(open_tickets.erase(failure->ticket), 1u);
          ++failed;
        }
        if (std::holds_alternative<PagerOpened>(news)) ++opened;
        if (std::holds_alternative<PagerEnded>(news)) ++ended;
      }
      ::usleep(200);
    }
    if (link.pid() != 0) ::kill(link.pid(), SIGKILL);
  }
  SegmentReader reader = make_reader(folder, &test_key());
  for (const PagerWrittenRun& run : runs) CHECK(reads_back(reader, run, victim));
  note(std::to_string(runs.size()) + " records answered and read, " + std::to_string(failed) +
       " batches lost, " + std::to_string(opened) + " pagers opened the store, " +
       std::to_string(ended) + " ended");
  CHECK(opened > 100 && failed > 0 && runs.size() > 100);
}

TEST(pager_that_hangs_is_seen_and_replaced) {
  const std::string folder = test_folder();
  Victim victim(64);
  victim.put(0, 1, 64);
  PagerLink link(pager_options(folder));
  link.set_source(0, victim.source());
  await<PagerOpened>(link);
  CHECK(::kill(link.pid(), SIGSTOP) == 0);
  // Large requests, of which the socket does not take many.
  const std::vector<PagerRun> runs(kPagerRunsMax, victim.run(0, 1));
  const uint64_t start_us = now_us();
  CHECK(link.submit(1, runs) && link.submit(1, runs) && !link.ready() && !link.submit(1, runs));
  for (int i = 0; i < 5; ++i) CHECK(link.ask_usage().has_value());
  CHECK(link.poll().empty());
  CHECK(now_us() - start_us < 200'000 * static_cast<uint64_t>(slowness()));
  ::usleep(50'000);
  CHECK(link.poll().empty());
  CHECK(link.since_us() >= 50'000);
  const pid_t hung = link.pid();
  link.kill_pager("the store hangs");
  CHECK(link.pid() == 0 && link.since_us() == 0);
  for (int i = 0; i < 7; ++i) {
    CHECK(await<PagerFailedMessage>(link).reason == "the store hangs");
  }
  await<PagerEnded>(link);
  await<PagerOpened>(link);
  CHECK(link.pid() != hung);
  CHECK(link.submit(2, {victim.run(0, 64)}).has_value());
  CHECK_EQUAL(await<PagerWrittenMessage>(link).runs.size(), 8u);
}

TEST(pager_tells_of_a_full_store_and_goes_on) {
  const std::string folder = test_folder();
  Victim victim(256);
  victim.put(0, 2, 256);
  PagerOptions options = pager_options(folder);
  options.bytes_max = 400'000;
  options.segment_bytes_max = 200'000;
  PagerLink link(options);
  link.set_source(0, victim.source());
  await<PagerOpened>(link);
  link.submit(1, {victim.run(0, 64)});
  const auto first = await<PagerWrittenMessage>(link);
  const auto ticket = link.submit(1, {victim.run(0, 256)});
  const auto full = await<PagerFailedMessage>(link);
  CHECK(full.kind == StoreFailure::kFull && full.ticket == *ticket);
  CHECK(full.reason.find("limit") != std::string::npos);
  std::vector<uint32_t> segments;
  for (const PagerWrittenRun& run : first.runs) segments.push_back(segment_of(run.location));
  CHECK(link.drop_segments(segments).has_value());
  CHECK_EQUAL(await<PagerDoneMessage>(link).usage.bytes, 0u);
  link.submit(1, {victim.run(64, 64)});
  const auto second = await<PagerWrittenMessage>(link);
  SegmentReader reader = make_reader(folder, &test_key());
  for (const PagerWrittenRun& run : second.runs) CHECK(reads_back(reader, run, victim));
}

TEST(pager_waits_for_a_store_that_is_not_there) {
  const std::string folder = test_folder() + "/later";
  PagerLink link(pager_options(folder));
  CHECK(await<PagerFailedMessage>(link).kind == StoreFailure::kGone);
  CHECK(await<PagerFailedMessage>(link).ticket == 0);
  const pid_t pid = link.pid();
  CHECK(::mkdir(folder.c_str(), 0700) == 0);
  await<PagerOpened>(link);
  CHECK(link.pid() == pid);
  link.probe(7, PagerProbe::kWrite);
  await<PagerDoneMessage>(link);
  link.probe(7, PagerProbe::kCheck);
  CHECK(await<PagerDoneMessage>(link).found);
  link.probe(8, PagerProbe::kCheck);
  CHECK(!await<PagerDoneMessage>(link).found);
  link.probe(7, PagerProbe::kRemove);
  await<PagerDoneMessage>(link);
  link.remove_generation(test_generation().generation);
  await<PagerDoneMessage>(link);
  CHECK(!std::filesystem::exists(folder + "/" + test_generation().group));
  link.ask_usage();
  CHECK(await<PagerFailedMessage>(link).kind == StoreFailure::kGone);
}

TEST(pager_without_an_executable_is_told) {
  PagerOptions options = pager_options(test_folder());
  options.executable = "/nowhere/replpage-pager";
  PagerLink link(options);
  CHECK(await<PagerEnded>(link).reason.find("/nowhere/replpage-pager") != std::string::npos);
  CHECK(!link.ready() && link.pid() == 0);
}

TEST(pager_has_only_its_owner_s_rights_and_keeps_the_key) {
  if (::geteuid() != 0) SKIP("other ids can be taken by root only");
  constexpr uid_t kNobody = 65534;
  const std::string folder = test_folder();
  const CallerRights nobody{.uid = kNobody, .gid = kNobody, .groups = {kNobody}};
  PagerOptions options = pager_options(folder);
  options.rights = nobody;
  {
    PagerLink link(options);
    CHECK(await<PagerFailedMessage>(link).kind == StoreFailure::kUnusable);
  }
  CHECK(::chown(folder.c_str(), kNobody, kNobody) == 0);
  Victim victim(8);
  victim.put(0, 2, 8);
  PagerLink link(options);
  link.set_source(0, victim.source());  // opened by us: it needs no rights of its own
  await<PagerOpened>(link);
  link.submit(1, {victim.run(0, 8)});
  CHECK_EQUAL(await<PagerWrittenMessage>(link).runs.size(), 1u);
  struct stat status {};
  CHECK(::stat(segment_path(folder, 1).c_str(), &status) == 0 && status.st_uid == kNobody &&
        (status.st_mode & 0777) == 0600);
  bool refused = false;
  try {
    open_with_rights("/proc/" + std::to_string(link.pid()) + "/mem", O_RDONLY, 0, nobody);
  } catch (const std::exception&) {
    refused = true;
  }
  CHECK(refused && !may_trace(link.pid(), nobody));
}

TEST(pager_ends_with_who_started_it) {
  const std::string folder = test_folder();
  std::array<int, 2> ends{};
  CHECK(::pipe(ends.data()) == 0);
  const pid_t owner = ::fork();
  if (owner == 0) {
    PagerLink link(pager_options(folder));
    await<PagerOpened>(link);
    const pid_t pager = link.pid();
    (void)!::write(ends[1], &pager, sizeof pager);
    for (;;) ::pause();
  }
  pid_t pager = 0;
  CHECK(::read(ends[0], &pager, sizeof pager) == sizeof pager && pager > 0);
  ::kill(owner, SIGKILL);
  ::waitpid(owner, nullptr, 0);
  const std::string status = "/proc/" + std::to_string(pager) + "/cmdline";
  for (int i = 0; i < 200 * slowness() && !read_file(status).empty(); ++i) ::usleep(10'000);
  CHECK(read_file(status).empty());
}

TEST(pager_figures) {
  constexpr uint32_t kPages = kPagerPagesMax;
  constexpr int kBatches = 8;
  for (const bool random : {true, false}) {
    const std::string folder = test_folder();
    Victim victim(kPages);
    for (size_t page = 0; page < kPages; ++page) victim.put(page, 2 * page + (random ? 2 : 1));
    PagerLink link(pager_options(folder));
    link.set_source(0, victim.source());
    const uint64_t start_us = now_us();
    await<PagerOpened>(link);
    const uint64_t opened_us = now_us();
    uint64_t cpu = 0;
    int submitted = 0;
    for (int answered = 0; answered < kBatches; ++answered) {
      while (submitted < kBatches && link.submit(1, {victim.run(0, kPages)})) ++submitted;
      cpu += await<PagerWrittenMessage>(link).cpu_us;
    }
    const double took_us = static_cast<double>(now_us() - opened_us);
    const double megabytes = double{kBatches} * kPages * kPageSize / 1e6;
    char text[160];
    std::snprintf(text, sizeof text,
                  "%s: open %.1f ms, %.0f MB/s durable, %.2f us of CPU a page, %.2f of its size",
                  random ? "does not shrink" : "shrinks",
                  static_cast<double>(opened_us - start_us) / 1e3, megabytes / (took_us / 1e6),
                  static_cast<double>(cpu) / (kBatches * kPages),
                  static_cast<double>(link.usage().bytes) / (megabytes * 1e6));
    note(text);
  }
}

}  // namespace
}  // namespace replpage
