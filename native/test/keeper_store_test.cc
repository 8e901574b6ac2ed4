// A replica whose memory is in the page store, and what may happen to the keeper, the holder and
// the store while it is refilled: never a zero, never anything else than what was stored.
#include <sys/fanotify.h>
#include <sys/uio.h>

#include <algorithm>
#include <filesystem>
#include <random>

#include "core/base/clock.h"
#include "core/uffd/uffd.h"
#include "test/keeper_fixture.h"
#include "test/store_fixture.h"

namespace replpage {
namespace {

using namespace keeper_testing;

constexpr uint32_t kSegmentBytes = 1 << 20;
constexpr uint64_t kVictimEnd = kBase + kPages * kPageSize;

// The victim's memory in a page store of many small segments.
class ColdStage {
 public:
  explicit ColdStage(Victim& victim) : victim_(victim), stage_(victim) {
    WriterOptions options = testing::writer_options(folder_);
    options.segment_bytes_max = kSegmentBytes;
    options.compress = false;
    SegmentWriter writer(options);
    const UniqueFd memory = victim.memory();
    std::vector<uint8_t> content(kRecordPagesMax * kPageSize);
    for (uint64_t at = kBase; at < kVictimEnd; at += content.size()) {
      CHECK(::pread(memory.get(), content.data(), content.size(), static_cast<off_t>(at)) ==
            static_cast<ssize_t>(content.size()));
      const StoreLocation place = writer.append(victim.group_pid(), at, 1, content);
      cold_.runs.push_back({.pid = victim.group_pid(),
                            .object = 0,
                            .kind = PageRunKind::kCold,
                            .address = at,
                            .length = content.size(),
                            .data_offset = place.pack()});
    }
    writer.sync();
    segments_ = writer.next_segment() - 1;
    PageRunList others;
    for (const PageRun& run : stage_.runs()) {
      if (run.address < kBase || run.address >= kVictimEnd) others.runs.push_back(run);
    }
    others_ = stage_.staging().put(others);
    cold_runs_ = stage_.staging().put(cold_);
  }

  void bring_to_epoch(Channel& channel) {
    channel.send(MessageType::kBuild, ImageMessage{1, stage_.image()});
    answer_of(channel, MessageType::kBuilt);
    channel.send(MessageType::kPages, PagesMessage{1, others_});
    answer_of(channel, MessageType::kPagesDone);
    const auto key = testing::test_key().bytes();
    const GenerationName of = testing::test_generation();
    const UniqueFd directory = open_path(generation(), O_RDONLY | O_DIRECTORY);
    const int fd = directory.get();
    channel.send(MessageType::kStore,
                 StoreMessage{.key = Bytes(key.begin(), key.end()),
                              .path = folder_,
                              .name = of.group,
                              .group_id = of.group_id,
                              .generation = of.generation},
                 {&fd, 1});
    channel.send(MessageType::kStage, PagesMessage{1, cold_runs_});
    channel.send(MessageType::kCommit, ImageMessage{1, stage_.image()});
    const auto committed =
        decode<CommittedMessage>(answer_of(channel, MessageType::kCommitted).body);
    CHECK_EQUAL(committed.cold_bytes, kPages * kPageSize);
  }

  // About to run, or to fail.
  KeeperProcess promoting(uint64_t number) {
    KeeperProcess keeper = spawn(stage_.staging(), number);
    bring_to_epoch(keeper.channel);
    stage_.send_promotion(keeper.channel, UniqueFd(), 1);
    return keeper;
  }
  KeeperProcess promoted(uint64_t number) {
    KeeperProcess keeper = promoting(number);
    answer_of(keeper.channel, MessageType::kPromoted);
    answer_of(keeper.channel, MessageType::kDrained);  // no process is waited for
    return keeper;
  }

  void promote(Channel& channel, uint64_t epoch) {
    stage_.send_promotion(channel, UniqueFd(), epoch);
    answer_of(channel, MessageType::kPromoted);
    answer_of(channel, MessageType::kDrained);  // no process is waited for
  }

  // Writes the pages of one of so many parts, as the victim has them, in an epoch of their own.
  void commit_part(Channel& channel, uint64_t epoch, uint64_t part, uint64_t parts) {
    PageRunList list;
    for (const PageRun& run : stage_.runs()) {
      for (uint64_t offset = 0; offset < run.length; offset += kPageSize) {
        const uint64_t at = run.address + offset;
        if (at < kBase || at >= kVictimEnd || at / kPageSize % parts != part) continue;
        PageRun page = run;
        page.address = at;
        page.length = kPageSize;
        page.data_offset += offset;
        list.runs.push_back(page);
      }
    }
    channel.send(MessageType::kStage, PagesMessage{epoch, stage_.staging().put(list)});
    channel.send(MessageType::kCommit, ImageMessage{epoch, stage_.image_of(epoch)});
    const auto committed =
        decode<CommittedMessage>(answer_of(channel, MessageType::kCommitted).body);
    testing::note(std::to_string(list.runs.size()) + " cold pages written in " +
                  std::to_string(committed.apply_us) + " us");
  }

  [[nodiscard]] std::string generation() const {
    return folder_ + "/" + generation_path(testing::test_generation());
  }
  [[nodiscard]] std::string segment(uint32_t number) const {
    return testing::segment_path(folder_, number);
  }
  [[nodiscard]] uint32_t segments() const { return segments_; }
  StagingArea& staging() { return stage_.staging(); }
  [[nodiscard]] const std::vector<PageRun>& cold() const { return cold_.runs; }

 private:
  Victim& victim_;
  Stage stage_;
  const std::string folder_ = testing::test_folder();
  uint32_t segments_ = 0;
  PageRunList cold_;
  StagedBytes others_, cold_runs_;
};

bool is_refilled(const std::string& status) {
  return has(status, "\"coldPages\":0,") && !has(status, "\"refillUs\":0,");
}

// Until nothing is cold any more, and the victim has gone over much of its memory.
void wait_refilled(Victim& victim) {
  CHECK(within(20'000, [] { return is_refilled(ask("status")); }));
  const uint64_t rounds = victim.board().rounds;
  CHECK(within(5000, [&] { return victim.board().rounds > rounds + 200'000; }));
  CHECK_EQUAL(victim.board().wrong.load(), 0u);
}

void end(KeeperProcess& keeper) {
  CHECK(has(ask("end"), "promoted"));
  CHECK(has(ask("wait"), "\"state\":\"ended\""));
  CHECK(ends(keeper.pidfd));
}

// Opening a file below the directory hangs as on a mount whose server is gone.
class HungStore {
 public:
  explicit HungStore(const std::string& directory)
      : group_(::fanotify_init(FAN_CLASS_CONTENT | FAN_CLOEXEC, O_RDONLY)) {
    if (!group_.valid()) SKIP("no fanotify with permissions here");
    CHECK(::fanotify_mark(group_.get(), FAN_MARK_ADD, FAN_OPEN_PERM | FAN_EVENT_ON_CHILD, AT_FDCWD,
                          directory.c_str()) == 0);
  }
  // Also what hangs already goes on.
  void answer() { group_.reset(); }

 private:
  UniqueFd group_;
};

uint64_t number_in(const std::string& status, const std::string& key) {
  const size_t at = status.find("\"" + key + "\":");
  CHECK(at != std::string::npos);
  return std::strtoull(status.c_str() + at + key.size() + 3, nullptr, 10);
}

enum class Killed : uint8_t { kKeeper, kHolderThenKeeper, kBothAtOnce };

void kill(KeeperProcess& keeper, Killed how) {
  if (how != Killed::kKeeper) CHECK(::kill(keeper.holder, SIGKILL) == 0);
  if (how == Killed::kHolderThenKeeper) ::usleep(2000);
  CHECK(::kill(keeper.keeper, SIGKILL) == 0);
  CHECK(ends(keeper.pidfd));
}

// REPLPAGE_TEST_KILLS: how often.
void kill_while_refilled(Killed how) {
  need_keeper();
  Victim victim;
  ColdStage stage(victim);
  std::mt19937 random(42);
  const char* asked = std::getenv("REPLPAGE_TEST_KILLS");
  const int kills = asked != nullptr ? std::atoi(asked) : 20;
  int while_cold = 0;
  for (int i = 0; i < kills; ++i) {
    KeeperProcess keeper = stage.promoted(static_cast<uint64_t>(i) + 1);
    ::usleep(random() % 40'000);
    const bool refilled = is_refilled(ask("status"));
    if (!refilled) ++while_cold;
    kill(keeper, how);
    CHECK_EQUAL(victim.board().wrong.load(), 0u);
    CHECK_EQUAL(victim.board().buses.load(), 0u);
  }
  testing::note(std::to_string(while_cold) + " of " + std::to_string(kills) +
                " kills came while pages were cold");
  CHECK(while_cold > kills / 4);
}

// ---- tests

TEST(cold_keeper_killed_in_a_refill_shows_no_zero) { kill_while_refilled(Killed::kKeeper); }
TEST(cold_holder_and_keeper_killed_in_a_refill_show_no_zero) {
  kill_while_refilled(Killed::kHolderThenKeeper);
}
TEST(cold_holder_and_keeper_killed_at_once_show_no_zero) {
  kill_while_refilled(Killed::kBothAtOnce);
}

TEST(cold_holder_killed_in_a_refill_changes_nothing) {
  need_keeper();
  Victim victim;
  ColdStage stage(victim);
  for (uint64_t i = 0; i < 5; ++i) {
    KeeperProcess keeper = stage.promoted(i + 1);
    CHECK(::kill(keeper.holder, SIGKILL) == 0);
    wait_refilled(victim);
    CHECK_EQUAL(victim.board().buses.load(), 0u);
    end(keeper);
  }
}

// How many pages of the victim's memory can be read in a standby, by either way.
uint64_t readable_pages(pid_t pid) {
  const UniqueFd memory = open_path("/proc/" + std::to_string(pid) + "/mem", O_RDONLY);
  uint64_t pages = 0;
  for (uint64_t at = kBase; at < kVictimEnd; at += kPageSize) {
    uint64_t by_file = 0, by_call = 0;
    const bool file = ::pread(memory.get(), &by_file, sizeof by_file, static_cast<off_t>(at)) ==
                      static_cast<ssize_t>(sizeof by_file);
    const iovec local{&by_call, sizeof by_call};
    const iovec remote{reinterpret_cast<void*>(at), sizeof by_call};  // NOLINT: standby's address
    const bool call =
        ::process_vm_readv(pid, &local, 1, &remote, 1, 0) == static_cast<ssize_t>(sizeof by_call);
    CHECK_EQUAL(file, call);
    const uint64_t right = value_at((at - kBase) / kPageSize);
    CHECK(!file || (by_file == right && by_call == right));
    if (file) ++pages;
  }
  return pages;
}

// The kernel would put zero pages where it finds none.
TEST(cold_memory_of_a_standby_is_not_read_as_zero) {
  need_keeper();
  Victim victim;
  ColdStage stage(victim);
  KeeperProcess keeper = spawn(stage.staging());
  stage.bring_to_epoch(keeper.channel);
  const auto standby = static_cast<pid_t>(number_in(ask("status"), "hostPid"));
  CHECK_EQUAL(readable_pages(standby), 0u);
  // What an epoch writes comes into guarded memory, alone or beside other pages.
  stage.commit_part(keeper.channel, 2, 0, 3);
  CHECK(readable_pages(standby) >= kPages / 3);
  stage.commit_part(keeper.channel, 3, 0, 2);
  const uint64_t readable = readable_pages(standby);
  CHECK_EQUAL(number_in(ask("status"), "coldPages"), kPages - readable);
  CHECK(readable >= kPages * 2 / 3 - 1 && readable <= kPages * 2 / 3 + 1);
  stage.promote(keeper.channel, 3);
  wait_refilled(victim);
  CHECK_EQUAL(victim.board().buses.load(), 0u);
  end(keeper);
}

TEST(cold_store_that_hangs_is_waited_for) {
  need_keeper();
  Victim victim;
  ColdStage stage(victim);
  HungStore hung(stage.generation());
  KeeperProcess keeper = stage.promoted(1);
  ::usleep(200'000);
  std::string status = ask("status");
  CHECK_EQUAL(number_in(status, "waitingFaults"), 1u);
  CHECK(number_in(status, "waitingUs") > 50'000);
  CHECK_EQUAL(number_in(status, "coldPages"), kPages);
  const uint64_t rounds = victim.board().rounds;
  ::usleep(100'000);
  CHECK_EQUAL(victim.board().rounds.load(), rounds);
  hung.answer();
  wait_refilled(victim);
  CHECK_EQUAL(victim.board().buses.load(), 0u);
  end(keeper);
}

// Nothing that hangs keeps the group, or its keeper, from being ended.
TEST(cold_group_ends_while_its_store_hangs) {
  need_keeper();
  Victim victim;
  ColdStage stage(victim);
  for (const bool killed : {false, true}) {
    HungStore hung(stage.generation());
    KeeperProcess keeper = stage.promoted(killed ? 2 : 1);
    ::usleep(50'000);
    if (killed) {
      kill(keeper, Killed::kKeeper);
    } else {
      end(keeper);
    }
    CHECK_EQUAL(victim.board().wrong.load(), 0u);
  }
}

TEST(cold_store_deleted_in_a_refill_gives_no_wrong_byte) {
  need_keeper();
  Victim victim;
  ColdStage stage(victim);
  HungStore hung(stage.generation());
  KeeperProcess keeper = stage.promoted(1);
  ::usleep(50'000);
  std::filesystem::remove_all(stage.generation());
  hung.answer();
  // Names may be news to a client of NFS: they are waited for, half a minute long.
  CHECK(within(10'000, [] { return has(ask("status"), "No such file"); }));
  testing::note(std::to_string(number_in(ask("status"), "coldPages")) + " pages stayed cold");
  CHECK(number_in(ask("status"), "coldPages") > 0);
  CHECK_EQUAL(victim.board().wrong.load(), 0u);
  CHECK_EQUAL(victim.board().buses.load(), 0u);
  end(keeper);
}

// Damages one record in each of some segments, each in another field, and the header of another.
std::vector<bool> damage(const ColdStage& stage) {
  std::vector<bool> damaged(kPages);
  const std::vector<size_t> fields{0,  4,  8,  12, 16, 20, 24, 28, 32,   40,
                                   44, 48, 52, 56, 60, 63, 64, 80, 4096, 32'000};
  std::mt19937 random(7);
  uint32_t number = 1;
  const auto flip = [&](uint32_t segment, size_t at) {
    std::vector<uint8_t> bytes = testing::read_file(stage.segment(segment));
    bytes.at(at) ^= static_cast<uint8_t>(1u << random() % 8);
    testing::write_file(stage.segment(segment), bytes);
  };
  const auto lost = [&](const PageRun& run) {
    const uint64_t first = (run.address - kBase) / kPageSize;
    for (uint64_t i = 0; i < run.length / kPageSize; ++i) damaged[first + i] = true;
  };
  for (const size_t field : fields) {
    const auto run = std::find_if(
        stage.cold().begin(), stage.cold().end(),
        [number](const PageRun& one) { return segment_of(one.data_offset) == number; });
    CHECK(run != stage.cold().end());
    flip(number++, StoreLocation::unpack(run->data_offset)->record_offset + field);
    lost(*run);
  }
  flip(number, 20);
  for (const PageRun& run : stage.cold()) {
    if (segment_of(run.data_offset) == number) lost(run);
  }
  return damaged;
}

TEST(cold_pages_that_are_damaged_raise_sigbus_and_no_others) {
  need_keeper();
  Victim victim;
  ColdStage stage(victim);
  const std::vector<bool> damaged = damage(stage);
  const auto count = static_cast<uint64_t>(std::count(damaged.begin(), damaged.end(), true));
  if (!Uffd::can_poison()) {  // before Linux 6.6
    CHECK(ends(stage.promoting(1).pidfd));
    CHECK_EQUAL(victim.board().wrong.load(), 0u);
    return;
  }
  KeeperProcess keeper = stage.promoted(1);
  wait_refilled(victim);
  CHECK_EQUAL(number_in(ask("status"), "damagedPages"), count);
  const auto seen = [&] {
    uint64_t pages = 0;
    for (uint64_t page = 0; page < kPages; ++page) {
      const bool bus = (victim.board().bus_pages[page / 64] >> page % 64 & 1) != 0;
      CHECK(!bus || damaged[page]);
      if (bus) ++pages;
    }
    return pages;
  };
  CHECK(within(10'000, [&] { return seen() == count; }));
  testing::note(std::to_string(count) + " pages raised SIGBUS, " +
                std::to_string(victim.board().buses.load()) + " times");
  CHECK_EQUAL(victim.board().wrong.load(), 0u);
  end(keeper);
}

}  // namespace
}  // namespace replpage
