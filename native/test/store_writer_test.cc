#include <dlfcn.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/resource.h>

#include <csignal>

#include "core/store/store_files.h"
#include "test/store_fixture.h"

namespace replpage {
namespace {

// What the next calls of fdatasync() answer: 0, or an errno that is answered once.
int failing_fdatasync = 0;

}  // namespace
}  // namespace replpage

// In place of libc's, for the whole test program: a disk that fails cannot be had otherwise.
extern "C" int fdatasync(int fd) {
  if (replpage::failing_fdatasync != 0) {
    errno = std::exchange(replpage::failing_fdatasync, 0);
    return -1;
  }
  using Function = int (*)(int);
  static const auto real = reinterpret_cast<Function>(::dlsym(RTLD_NEXT, "fdatasync"));
  return real(fd);
}

namespace replpage {
namespace {

using namespace testing;

// A tmpfs of this size, mounted for this process alone.
std::string small_file_system(size_t bytes) {
  if (::unshare(CLONE_NEWNS) != 0) SKIP("mounting needs CAP_SYS_ADMIN");
  CHECK(::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0);
  const std::string folder = test_folder();
  const std::string option = "size=" + std::to_string(bytes);
  CHECK(::mount("none", folder.c_str(), "tmpfs", 0, option.c_str()) == 0);
  return folder;
}

TEST(store_writer_survives_a_full_disk) {
  const std::string folder = small_file_system(4 << 20);
  SegmentWriter writer(writer_options(folder));
  std::vector<TestRecord> kept;
  for (uint64_t i = 0; i < 20; ++i) {
    kept.push_back(append_record(writer, 1, i << 20, test_pages(i, 8, true)));
  }
  writer.sync();
  const uint64_t before = writer.bytes_on_disk();
  std::vector<TestRecord> lost;
  const auto fill = [&] {
    for (uint64_t i = 0; i < 500; ++i) {
      lost.push_back(append_record(writer, 1, i << 20, test_pages(1000 + i, 8, true)));
    }
    writer.sync();
  };
  for (int round = 0; round < 3; ++round) {
    lost.clear();
    CHECK(failure_of(fill) == StoreFailure::kFull);
    CHECK_EQUAL(writer.bytes_on_disk(), before);
    CHECK_EQUAL(read_file(segment_path(folder, 1)).size(), before);
  }
  // In the room of what was cut off, and never under the same nonce.
  const TestRecord after = append_record(writer, 1, 77 << 20, test_pages(7, 8, true));
  CHECK_EQUAL(after.location, lost[0].location);
  writer.sync();
  SegmentReader reader = make_reader(folder, &test_key());
  for (const TestRecord& record : kept) CHECK(reads_back(reader, record));
  CHECK(reads_back(reader, after));
  CHECK(failure_of([&] { reads_back(reader, lost[0]); }) == StoreFailure::kDamaged);
  RecordHeader header;
  const std::vector<uint8_t> bytes = read_file(segment_path(folder, 1));
  std::memcpy(&header, bytes.data() + StoreLocation::unpack(after.location)->record_offset,
              sizeof header);
  CHECK_EQUAL(header.attempt, 3u);
}

// A write that ends in the middle of a record.
TEST(store_writer_cuts_off_half_a_write) {
  const std::string folder = test_folder();
  WriterOptions options = writer_options(folder);
  SegmentWriter writer(options);
  const TestRecord first = append_record(writer, 1, 0, test_pages(1, 8, true));
  writer.sync();
  const uint64_t before = writer.bytes_on_disk();
  std::signal(SIGXFSZ, SIG_IGN);
  const rlimit limit{.rlim_cur = before + 100'001, .rlim_max = RLIM_INFINITY};
  CHECK(::setrlimit(RLIMIT_FSIZE, &limit) == 0);
  const auto fill = [&] {
    for (uint64_t i = 0; i < 10; ++i) append_record(writer, 1, i << 20, test_pages(i, 8, true));
    writer.sync();
  };
  CHECK(failure_of(fill) == StoreFailure::kFull);
  CHECK_EQUAL(read_file(segment_path(folder, 1)).size(), before);
  const rlimit none{.rlim_cur = RLIM_INFINITY, .rlim_max = RLIM_INFINITY};
  CHECK(::setrlimit(RLIMIT_FSIZE, &none) == 0);
  fill();
  SegmentReader reader = make_reader(folder, &test_key());
  CHECK(reads_back(reader, first));
}

TEST(store_writer_believes_no_segment_after_a_failed_sync) {
  const std::string folder = test_folder();
  SegmentWriter writer(writer_options(folder));
  const TestRecord first = append_record(writer, 1, 0, test_pages(1, 8, true));
  writer.sync();
  const TestRecord lost = append_record(writer, 1, 1 << 20, test_pages(2, 8, true));
  failing_fdatasync = EIO;
  CHECK(failure_of([&] { writer.sync(); }) == StoreFailure::kIo);
  const TestRecord after = append_record(writer, 1, 1 << 20, test_pages(3, 8, true));
  writer.sync();
  CHECK_EQUAL(segment_of(lost.location), 1u);
  CHECK_EQUAL(segment_of(after.location), 2u);
  SegmentReader reader = make_reader(folder, &test_key());
  CHECK(reads_back(reader, first) && reads_back(reader, after));
  CHECK(failure_of([&] { reads_back(reader, lost); }) == StoreFailure::kDamaged);
  failing_fdatasync = EDQUOT;  // as NFS tells it: late
  append_record(writer, 1, 2 << 20, test_pages(4, 8, true));
  CHECK(failure_of([&] { writer.sync(); }) == StoreFailure::kFull);
  CHECK(reads_back(reader, after));
}

TEST(store_writer_keeps_to_its_limit) {
  const std::string folder = test_folder();
  WriterOptions options = writer_options(folder);
  {
    options.of.generation = 2;
    SegmentWriter older(options);
    append_record(older, 1, 0, test_pages(9, 8, true));
    older.sync();
    options.of.generation = 3;
  }
  options.bytes_max = 200'000;
  SegmentWriter writer(options);
  CHECK(writer.bytes_on_disk() > 32'768);
  std::vector<TestRecord> records;
  const auto fill = [&] {
    for (uint64_t i = 0; i < 20; ++i) {
      records.push_back(append_record(writer, 1, i << 20, test_pages(i, 8, true)));
      writer.sync();
    }
  };
  CHECK(failure_of(fill) == StoreFailure::kFull);
  CHECK(writer.bytes_on_disk() <= 200'000);
  CHECK_EQUAL(records.size(), 5u);
  writer.remove_generation(2);
  records.push_back(append_record(writer, 1, 99 << 20, test_pages(99, 8, true)));
  writer.sync();
  SegmentReader reader = make_reader(folder, &test_key());
  for (const TestRecord& record : records) CHECK(reads_back(reader, record));
}

TEST(store_writer_rolls_over_and_drops_segments) {
  const std::string folder = test_folder();
  WriterOptions options = writer_options(folder);
  options.segment_bytes_max = 256 << 10;
  SegmentWriter writer(options);
  std::vector<TestRecord> records;
  for (uint64_t i = 0; i < 30; ++i) {
    records.push_back(append_record(writer, 1, i << 20, test_pages(i, 8, true)));
    if (i % 11 == 0) writer.sync();
  }
  writer.sync();
  const uint32_t last = segment_of(records.back().location);
  CHECK(last >= 4);
  CHECK_EQUAL(writer.segments(), uint64_t{last});
  for (uint32_t number = 1; number <= last; ++number) {
    CHECK(read_file(segment_path(folder, number)).size() <= 256 << 10);
  }
  SegmentReader reader = make_reader(folder, &test_key());
  CHECK(reads_back(reader, records[0]));
  const uint64_t before = writer.bytes_on_disk();
  writer.drop_segment(1);
  writer.drop_segment(1);
  CHECK(writer.bytes_on_disk() < before);
  CHECK(reads_back(reader, records[0]));  // what is open is open
  SegmentReader other = make_reader(folder, &test_key());
  CHECK(failure_of([&] { reads_back(other, records[0]); }) == StoreFailure::kGone);
  CHECK(reads_back(other, records.back()));
  writer.drop_segment(last);  // the one that is being written
  const TestRecord after = append_record(writer, 1, 0, test_pages(99, 1, true));
  writer.sync();
  CHECK_EQUAL(segment_of(after.location), last + 1);
  CHECK(reads_back(other, after));
}

TEST(store_writer_that_died_is_replaced) {
  const std::string folder = test_folder();
  WriterOptions options = writer_options(folder);
  TestRecord first;
  {
    SegmentWriter writer(options);
    first = append_record(writer, 1, 0, test_pages(1, 8, true));
    writer.sync();
    append_record(writer, 1, 1 << 20, test_pages(2, 8, true));  // never durable
  }
  CHECK(failure_of([&] { SegmentWriter twice(options); }) == StoreFailure::kUnusable);
  options.again = true;
  options.first_segment = 5;
  SegmentWriter writer(options);
  const TestRecord second = append_record(writer, 1, 1 << 20, test_pages(3, 8, true));
  writer.sync();
  CHECK_EQUAL(segment_of(second.location), 5u);
  options.first_segment = 1;
  SegmentWriter third(options);
  CHECK_EQUAL(third.next_segment(), 6u);
  options.writer = 78;
  CHECK(failure_of([&] { SegmentWriter other(options); }) == StoreFailure::kUnusable);
  SegmentReader reader = make_reader(folder, &test_key());
  CHECK(reads_back(reader, first) && reads_back(reader, second));
}

TEST(store_writer_refuses_what_is_no_record) {
  SegmentWriter writer(writer_options(test_folder()));
  const std::vector<uint8_t> pages(9 * kPageSize);
  for (const size_t size : {size_t{0}, size_t{100}, 9 * kPageSize}) {
    bool refused = false;
    try {
      writer.append(1, 0, 1, std::span(pages).first(size));
    } catch (const std::invalid_argument&) {
      refused = true;
    }
    CHECK(refused);
  }
}

TEST(store_directory_is_checked) {
  const auto failure = [](const std::string& path, bool writing = true) {
    return failure_of([&] { open_store({.path = path, .writing = writing}); });
  };
  CHECK(failure("/nowhere/store") == StoreFailure::kGone);
  CHECK(failure("/dev/null") == StoreFailure::kGone);
  CHECK(failure("/proc") == StoreFailure::kUnusable);
  CHECK(failure("/dev/shm") == StoreFailure::kUnusable);
  const std::string folder = test_folder();
  CHECK(failure(folder, false) == StoreFailure::kGone);
  CHECK(!failure(folder) && !failure(folder, false));
  const std::string mark = folder + "/replpage-store";
  const std::vector<uint8_t> right = read_file(mark);
  for (size_t at = 0; at < right.size(); ++at) {
    for (int bit = 0; bit < 8; ++bit) {
      std::vector<uint8_t> bytes = right;
      bytes[at] ^= static_cast<uint8_t>(1 << bit);
      write_file(mark, bytes);
      CHECK(failure(folder) == StoreFailure::kDamaged);
    }
    write_file(mark, std::span(right).first(at));
    CHECK(failure(folder) == StoreFailure::kDamaged);
  }
  const std::string future = "replpage-store 2";
  char sum[16];
  std::snprintf(sum, sizeof sum, " %08x\n",
                crc32c({reinterpret_cast<const uint8_t*>(future.data()), future.size()}));
  const std::string text = future + sum;
  write_file(mark, {reinterpret_cast<const uint8_t*>(text.data()), text.size()});
  CHECK(failure(folder) == StoreFailure::kUnusable);
  write_file(mark, right);
  if (::unshare(CLONE_NEWNS) != 0) SKIP("mounting needs CAP_SYS_ADMIN");
  CHECK(::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0);
  CHECK(::mount(folder.c_str(), folder.c_str(), nullptr, MS_BIND, nullptr) == 0);
  CHECK(::mount(nullptr, folder.c_str(), nullptr, MS_BIND | MS_REMOUNT | MS_RDONLY, nullptr) == 0);
  CHECK(failure(folder) == StoreFailure::kUnusable);
  CHECK(!failure(folder, false));
  ::umount2(folder.c_str(), MNT_DETACH);
}

TEST(store_refuses_a_volatile_overlay) {
  const std::string folder = test_folder();
  for (const char* part : {"/lower", "/upper", "/work", "/top"}) {
    CHECK(::mkdir((folder + part).c_str(), 0700) == 0);
  }
  if (::unshare(CLONE_NEWNS) != 0) SKIP("mounting needs CAP_SYS_ADMIN");
  CHECK(::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0);
  const std::string layers =
      "lowerdir=" + folder + "/lower,upperdir=" + folder + "/upper,workdir=" + folder + "/work";
  const std::string top = folder + "/top";
  for (const bool forgets : {false, true}) {
    const std::string data = layers + (forgets ? ",volatile" : "");
    if (::mount("overlay", top.c_str(), "overlay", 0, data.c_str()) != 0) {
      SKIP("no overlay file system here");
    }
    const auto failure = failure_of([&] { open_store({.path = top, .writing = true}); });
    ::umount2(top.c_str(), 0);
    CHECK(forgets ? failure == StoreFailure::kUnusable : !failure);
  }
}

TEST(store_probe_tells_whether_two_see_one_directory) {
  const std::string folder = test_folder();
  const UniqueFd store = open_store({.path = folder, .writing = true});
  CHECK(!check_probe(store.get(), folder, 5));
  write_probe(store.get(), folder, 5);
  CHECK(check_probe(store.get(), folder, 5) && !check_probe(store.get(), folder, 6));
  remove_probe(store.get(), 5);
  CHECK(!check_probe(store.get(), folder, 5));
}

TEST(store_generations_are_listed_and_removed) {
  const std::string folder = test_folder();
  for (const uint64_t generation : {3, 11, 4}) {
    WriterOptions options = writer_options(folder);
    options.of.generation = generation;
    SegmentWriter writer(options);
    append_record(writer, 1, 0, test_pages(1, 1, true));
    writer.sync();
  }
  const UniqueFd store = open_store({.path = folder});
  const auto list = [&] { return list_generations(store.get(), folder, test_generation()); };
  CHECK(list() == (std::vector<uint64_t>{3, 4, 11}));
  remove_generation(store.get(), folder, test_generation(4));
  remove_generation(store.get(), folder, test_generation(4));
  CHECK(list() == (std::vector<uint64_t>{3, 11}));
  const std::string foreign = folder + "/" + generation_path(test_generation(11)) + "/notes";
  write_file(foreign, {});
  CHECK(failure_of([&] { remove_generation(store.get(), folder, test_generation(11)); }) ==
        StoreFailure::kIo);
  std::filesystem::remove(foreign);
  remove_generation(store.get(), folder, test_generation(11));
  remove_generation(store.get(), folder, test_generation(3));
  CHECK(list().empty());
  CHECK(!std::filesystem::exists(folder + "/" + test_generation().group));
  for (const char* name : {"", ".", "..", "a/b", "-x", "a b"}) {
    CHECK(failure_of([&] { generation_path({.group = name}); }) == StoreFailure::kUnusable);
  }
}

}  // namespace
}  // namespace replpage
