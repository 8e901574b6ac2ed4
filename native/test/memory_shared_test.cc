// Shared objects: what is copied after writes through mappings, descriptors and by processes that
// have exited since.
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <optional>

#include "core/base/sys_error.h"
#include "core/memory/frame_map.h"
#include "core/memory/pagemap_entries.h"
#include "core/memory/soft_dirty_tracker.h"
#include "core/memory/uffd_wp_tracker.h"
#include "test/memory_victim.h"
#include "test/test.h"

namespace replpage {
namespace {

using testing::MemoryVictim;
using testing::ModelReplica;

// Used inside the victim only.
char* shared = nullptr;
int object_fd = -1;
constexpr size_t kPages = 512;

struct SharedFixture {
  explicit SharedFixture(bool memfd) : memfd_(memfd) {
    const TrackerKind tracker = testing::usual_tracker();
    victim.run(
        [](uint64_t as_memfd) -> uint64_t {
          int flags = MAP_SHARED;
          if (as_memfd != 0) {
            object_fd = ::memfd_create("shared test", MFD_CLOEXEC);
            if (::ftruncate(object_fd, kPages * kPageSize) != 0) return 1;
          } else {
            flags |= MAP_ANONYMOUS;
          }
          shared = static_cast<char*>(
              ::mmap(nullptr, kPages * kPageSize, PROT_READ | PROT_WRITE, flags, object_fd, 0));
          std::memset(shared, 5, 100 * kPageSize);
          return 0;
        },
        memfd ? 1 : 0);
    memory = MemoryCapture::create(victim.pid(), 7, tracker, victim.injector());
    capture = SharedObjectCapture::create();
    round();
    ::usleep(50'000);  // a change time of just now is looked at twice
    round();
  }

  CopyRound round() {
    const testing::Pause pause(victim, *memory);
    ProcessImage image;
    image.mappings = victim.map();
    std::vector<SharedObjectImage> objects;
    for (const MappingImage& mapping : image.mappings) {
      if (mapping.kind != MappingKind::kSharedObject || !objects.empty()) continue;
      SharedObjectImage object;
      object.id = 3;
      object.device = mapping.device;
      object.inode = mapping.inode;
      object.is_memfd = memfd_;
      object.size = mapping.offset + mapping.end - mapping.start;
      objects.push_back(object);
      known = object;
      window = mapping;
    }
    ModelReplica other;
    memory->track(image.mappings);
    memory->copy_changed(image.mappings, other);
    const CopyRound result = capture->copy_changed(
        {{.host_pid = victim.pid(), .image = &image, .memory = memory.get()}}, objects, replica);
    CHECK_EQUAL(difference(), std::string());
    return result;
  }

  CopyRound after(uint64_t (*function)(uint64_t), uint64_t argument = 0) {
    victim.run(function, argument);
    return round();
  }

  // Compares the model, keyed by offset, with what the victim sees.
  std::string difference() {
    char link[64];
    std::snprintf(link, sizeof link, "/proc/%d/map_files/%lx-%lx", victim.pid(), window.start,
                  window.end);
    const int fd = ::open(link, O_RDONLY | O_NOATIME);
    if (fd < 0) return "the object cannot be opened";
    ModelReplica::Page page;
    std::string result;
    for (uint64_t at = 0; at < kPages * kPageSize; at += kPageSize) {
      page.fill(0);
      if (::pread(fd, page.data(), kPageSize, static_cast<off_t>(at)) < 0) result = "no content";
      if (page != replica.page(at)) result = "page " + std::to_string(at / kPageSize) + " differs";
    }
    ::close(fd);
    return result;
  }

  MemoryVictim victim;
  ModelReplica replica;
  std::unique_ptr<MemoryCapture> memory;
  std::unique_ptr<SharedObjectCapture> capture;
  MappingImage window;
  SharedObjectImage known;  // of the last round
  bool memfd_;
};

TEST(a_shared_object_is_copied_whole_once_and_then_by_what_was_written) {
  SharedFixture f(false);
  CHECK_EQUAL(f.round().data_pages, 0u);
  const CopyRound round = f.after([](uint64_t) -> uint64_t {
    shared[3 * kPageSize] = 9;
    shared[400 * kPageSize] = 8;
    return 0;
  });
  CHECK_EQUAL(round.data_pages, 2u);
  CHECK_EQUAL(f.round().data_pages, 0u);
}

TEST(shared_pages_unmapped_after_a_write_are_not_lost) {
  SharedFixture f(false);
  const CopyRound round = f.after([](uint64_t) -> uint64_t {
    shared[3 * kPageSize] = 77;
    ::madvise(shared + 3 * kPageSize, kPageSize, MADV_DONTNEED);
    return 0;
  });
  CHECK_EQUAL(round.data_pages, 1u);
  f.after([](uint64_t) -> uint64_t {  // a hole is punched, and filled again in part
    ::madvise(shared + 40 * kPageSize, 20 * kPageSize, MADV_REMOVE);
    shared[45 * kPageSize] = 78;
    return 0;
  });
  CHECK(!f.replica.has(44 * kPageSize));
}

TEST(writes_to_the_file_of_a_shared_object_are_seen) {
  SharedFixture f(true);
  CHECK_EQUAL(f.round().data_pages, 0u);
  f.after([](uint64_t) -> uint64_t {
    return ::pwrite(object_fd, "written", 7, 5 * kPageSize) == 7 ? 0 : 1;
  });
  f.after([](uint64_t) -> uint64_t {
    return static_cast<uint64_t>(::fallocate(object_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                                             8 * kPageSize, 20 * kPageSize));
  });
  CHECK(!f.replica.has(10 * kPageSize));
  f.after([](uint64_t) -> uint64_t {  // a mapping that comes and goes unseen
    void* other = ::mmap(nullptr, kPageSize, PROT_READ | PROT_WRITE, MAP_SHARED, object_fd, 0);
    std::memset(other, 66, kPageSize);
    return static_cast<uint64_t>(::munmap(other, kPageSize));
  });
  for (int i = 0; i < 5; ++i) {  // within one clock tick of the last look
    f.after(
        [](uint64_t byte) -> uint64_t {
          return ::pwrite(object_fd, &byte, 1, 50 * kPageSize) == 1 ? 0 : 1;
        },
        static_cast<uint64_t>(100 + i));
  }
}

TEST(what_an_exiting_process_wrote_to_shared_memory_is_noted) {
  SharedFixture f(false);
  const uint64_t child = f.victim.run([](uint64_t) -> uint64_t {
    const pid_t pid = ::fork();
    if (pid == 0) {
      shared[7 * kPageSize] = 70;
      ::raise(SIGSTOP);
      ::_exit(0);
    }
    ::waitpid(pid, nullptr, WUNTRACED);
    return static_cast<uint64_t>(pid);
  });
  f.capture->note_exit(static_cast<pid_t>(child), nullptr);
  const CopyRound round = f.after(
      [](uint64_t pid) -> uint64_t {
        ::kill(static_cast<pid_t>(pid), SIGCONT);
        ::waitpid(static_cast<pid_t>(pid), nullptr, 0);
        return 0;
      },
      child);
  // Without PAGEMAP_SCAN nobody knows which ones.
  CHECK(round.data_pages >= 1 && (round.data_pages < 100 || !WriteProtectUffd::supported()));
  f.victim.run([](uint64_t) -> uint64_t {
    const pid_t pid = ::fork();
    if (pid == 0) {
      shared[9 * kPageSize] = 90;
      ::_exit(0);
    }
    ::waitpid(pid, nullptr, 0);
    return 0;
  });
  f.capture->copy_all_again();
  CHECK(f.round().data_pages >= 100);
}

TEST(a_shared_mapping_that_goes_away_makes_the_object_be_copied_whole) {
  SharedFixture f(true);
  f.victim.run([](uint64_t) -> uint64_t {
    void* second =
        ::mmap(nullptr, kPages * kPageSize, PROT_READ | PROT_WRITE, MAP_SHARED, object_fd, 0);
    shared = static_cast<char*>(second);
    return 0;
  });
  f.round();
  ::usleep(50'000);
  f.round();
  CHECK_EQUAL(f.round().data_pages, 0u);
  const CopyRound round = f.after([](uint64_t) -> uint64_t {
    shared[11 * kPageSize] = 110;
    return static_cast<uint64_t>(::munmap(shared, kPages * kPageSize));
  });
  CHECK(round.data_pages >= 100);
}

TEST(page_map_entries_are_chosen_by_their_bits) {
  const uint64_t entries[] = {kEntryPresent | kEntrySoftDirty | 5,
                              kEntrySwapped | kEntrySoftDirty,
                              kEntrySoftDirty,
                              kEntryPresent,
                              kEntryPresent | kEntryFile | kEntrySoftDirty,
                              0,
                              kEntryPresent | kEntrySoftDirty};
  constexpr uint64_t kStart = 0x7000;
  const auto pages = [&entries](const EntryQuery& query) {
    PageRanges ranges;
    append_matching(entries, kStart, query, ranges);
    std::string text;
    for (const PageRange& range : ranges) {
      for (uint64_t at = range.start; at < range.end; at += kPageSize) {
        text += std::to_string((at - kStart) / kPageSize);
      }
    }
    return text;
  };
  CHECK_EQUAL(pages({}), std::string("01346"));
  CHECK_EQUAL(pages({.required = kEntrySoftDirty}), std::string("0146"));
  CHECK_EQUAL(pages({.required = kEntrySoftDirty, .excluded = kEntryFile}), std::string("016"));
  CHECK_EQUAL(pages({.any_of = 0, .required = kEntrySoftDirty}), std::string("01246"));
}

// Takes nothing.
class RefusingSink final : public ModelReplica {
 public:
  std::span<uint8_t> reserve(uint64_t /*bytes*/) override { throw SysError("stage pages", ENOSPC); }
};

TEST(shared_pages_that_were_not_copied_in_time_are_copied_next_time) {
  SharedFixture f(false);
  f.round();
  f.victim.run([](uint64_t) -> uint64_t {
    shared[5 * kPageSize] = 5;
    return 0;
  });
  std::optional<testing::Pause> pause(std::in_place, f.victim, *f.memory);
  ProcessImage image;
  image.mappings = f.victim.map();
  CHECK_EQUAL(f.memory->count_dirty(image.mappings, 1000) > 0, true);
  ModelReplica other;
  f.memory->copy_changed(image.mappings, other);  // each round looks at private memory first
  RefusingSink refusing;
  bool failed = false;
  try {
    f.capture->copy_changed(
        {{.host_pid = f.victim.pid(), .image = &image, .memory = f.memory.get()}}, {f.known},
        refusing);
  } catch (const SysError&) {
    failed = true;
  }
  pause.reset();
  CHECK(failed);
  CHECK_EQUAL(f.round().data_pages, 1u);
  f.capture->copy_again(f.known.id, {7 * kPageSize, 9 * kPageSize});
  CHECK_EQUAL(f.round().data_pages, 2u);
}

TEST(written_shared_pages_are_counted) {
  SharedFixture f(false);
  f.round();
  const uint64_t before = f.memory->count_dirty(f.victim.map(), 10'000);
  f.victim.run([](uint64_t) -> uint64_t {
    for (size_t i = 0; i < 100; ++i) shared[i * kPageSize] = 6;
    return 0;
  });
  CHECK(f.memory->count_dirty(f.victim.map(), 10'000) >= before + 100);
  f.round();
  CHECK(f.memory->count_dirty(f.victim.map(), 10'000) < 100);
}

TEST(a_page_in_another_frame_has_changed) {
  constexpr uint64_t kStart = 0x10000;
  const EntryQuery present{.any_of = kEntryPresent, .required = 0, .excluded = 0};
  const auto entry = [](uint64_t frame) { return kEntryPresent | frame; };
  const uint64_t before[] = {entry(7), entry(8), 0, entry(9), entry(10)};
  const uint64_t after[] = {entry(7), entry(9), entry(8), 0, entry(10) | kEntrySoftDirty};
  FrameMap then, now;
  then.add(before, kStart, present);
  now.add(after, kStart, present);
  CHECK_EQUAL(now.changed_since(now).size(), 0u);
  const PageRanges changed = now.changed_since(then);
  CHECK_EQUAL(changed.size(), 1u);
  CHECK_EQUAL(changed.front().start, kStart + kPageSize);
  CHECK_EQUAL(changed.front().pages(), 2u);
  CHECK_EQUAL(now.changed_since(FrameMap()).size(), 2u);
}

// Where the kernel keeps no soft-dirty bits a file of the test's own says what it would say.
class FakePagemap {
 public:
  FakePagemap() : file_(::memfd_create("pagemap", MFD_CLOEXEC)) {}
  [[nodiscard]] UniqueFd open() const { return UniqueFd(::dup(file_.get())); }
  void set(uint64_t address, uint64_t entry) const {
    const auto at = static_cast<off_t>(address / kPageSize * sizeof entry);
    CHECK(::pwrite(file_.get(), &entry, sizeof entry, at) == sizeof entry);
  }

 private:
  UniqueFd file_;
};

TEST(a_last_soft_dirty_look_sees_what_was_written_to_shared_memory) {
  const FakePagemap pagemap;
  constexpr uint64_t kStart = 0x10000;
  MappingImage mapping;
  mapping.kind = MappingKind::kSharedObject;
  mapping.start = kStart;
  mapping.end = kStart + 8 * kPageSize;
  for (uint64_t page = 0; page < 8; ++page) pagemap.set(kStart + page * kPageSize, kEntryPresent);
  SoftDirtyTracker tracker(::getpid(), pagemap.open(),
                           UniqueFd(::memfd_create("clear_refs", MFD_CLOEXEC)));
  MemoryView view;
  tracker.look({&mapping, 1}, view);
  const PageRange whole = mapping.range();
  tracker.look_shared(mapping, {&whole, 1});
  pagemap.set(kStart + 3 * kPageSize, kEntryPresent | kEntrySoftDirty);
  CHECK_EQUAL(tracker.count({&mapping, 1}, 100), 1u);
  tracker.peek({&mapping, 1}, view);
  const PageRanges written = tracker.look_shared(mapping, {&whole, 1});
  CHECK_EQUAL(written.size(), 1u);
  CHECK_EQUAL(written.front().start, kStart + 3 * kPageSize);
  CHECK_EQUAL(written.front().pages(), 1u);
}

TEST(soft_dirty_rounds_follow_a_stopped_process) {
  if (!SoftDirtyTracker::supported()) SKIP("this kernel keeps no soft-dirty bits");
  MemoryVictim victim;
  const auto memory =
      MemoryCapture::create(victim.pid(), 7, TrackerKind::kSoftDirty, victim.injector());
  ModelReplica replica;
  for (uint64_t i = 0; i < 30; ++i) {
    victim.run(
        [](uint64_t seed) -> uint64_t {
          static char* area =
              static_cast<char*>(::mmap(nullptr, kPages * kPageSize, PROT_READ | PROT_WRITE,
                                        MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
          for (uint64_t n = 0; n < 50; ++n) area[(seed * 97 + n * 13) % kPages * kPageSize] = 'x';
          if (seed % 3 == 0) ::madvise(area + seed * kPageSize, 9 * kPageSize, MADV_DONTNEED);
          if (seed % 5 == 0) {
            ::mmap(area + 2 * seed * kPageSize, 9 * kPageSize, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
          }
          return 0;
        },
        i);
    victim.stop();
    const auto mappings = victim.map();
    replica.shape(mappings);
    memory->track(mappings);
    memory->copy_changed(mappings, replica);
    CHECK_EQUAL(replica.difference(victim.pid(), mappings), std::string());
    victim.go_on();
  }
}

}  // namespace
}  // namespace replpage
