#include <sys/mount.h>

#include <random>

#include "core/base/clock.h"
#include "core/base/sys_error.h"
#include "core/store/segment_cipher.h"
#include "test/store_fixture.h"

namespace replpage {
namespace {

using namespace testing;

TEST(store_location_packs_and_adds_pages) {
  const StoreLocation location{.segment = 1'234'567,
                               .record_offset = kSegmentBytesLimit - kRecordAlignment,
                               .record_kib = 61,
                               .content_offset = 2 * kPageSize};
  const uint64_t packed = location.pack();
  CHECK(packed >> 63 == 0);
  CHECK(StoreLocation::unpack(packed) == location);
  CHECK_EQUAL(segment_of(packed), 1'234'567u);
  const auto further = StoreLocation::unpack(pages_further(packed, 12));
  CHECK(further && further->content_offset == 14 * kPageSize);
  CHECK(further->record_offset == location.record_offset && further->record_kib == 61);
  CHECK(!StoreLocation::unpack(pages_further(packed, 13)));  // 15 pages at most
  CHECK(!StoreLocation::unpack(0));
  CHECK(!StoreLocation::unpack(packed | 1ull << 63));
  CHECK(!StoreLocation::unpack(packed + 1));
}

// What a refill does: many records with one read, of which some are wanted in part.
TEST(store_reads_runs_of_records_at_once) {
  const std::string folder = test_folder();
  std::vector<TestRecord> records;
  {
    SegmentWriter writer(writer_options(folder));
    for (uint64_t i = 0; i < 40; ++i) {
      const uint64_t address = 0x100000 + i * kRecordPagesMax * kPageSize;
      records.push_back(append_record(writer, 7, address, test_pages(i, 1 + i % 8, i % 2 == 0)));
    }
    writer.sync();
  }
  SegmentReader reader = make_reader(folder, &test_key());
  std::vector<std::vector<uint8_t>> got, expected;
  std::vector<PagesAt> wanted;
  const auto want = [&](const TestRecord& record, uint64_t first, uint64_t pages) {
    const auto from = record.content.begin() + static_cast<ptrdiff_t>(first * kPageSize);
    expected.emplace_back(from, from + static_cast<ptrdiff_t>(pages * kPageSize));
    got.emplace_back(pages * kPageSize);
    wanted.push_back({.location = pages_further(record.location, first), .into = got.back()});
  };
  for (uint64_t i = 0; i < records.size(); ++i) {
    const uint64_t pages = records[i].content.size() / kPageSize;
    if (i % 5 == 4) continue;  // not wanted: it lies between
    if (i % 3 != 2 || pages < 3) {
      want(records[i], 0, pages);
    } else {
      want(records[i], 0, 1);
      want(records[i], 2, pages - 2);
    }
  }
  CHECK(reader.read_run(wanted));
  CHECK(got == expected);
  CHECK(reader.read_run({}));

  // Nothing but the whole of what was asked for counts.
  std::vector<uint8_t> pages(9 * kPageSize);
  const auto one = [&](uint64_t location, uint64_t count) {
    const PagesAt at{.location = location, .into = std::span(pages).first(count * kPageSize)};
    return reader.read_run({&at, 1});
  };
  CHECK(one(records[7].location, 8));
  CHECK(!one(records[7].location, 9));
  CHECK(!one(pages_further(records[7].location, 1), 8));
  CHECK(!one(records[7].location + (1ull << 22), 8));  // no record begins there
  CHECK(!one(1, 1));
  const std::string path = segment_path(folder, 1);
  std::vector<uint8_t> bytes = read_file(path);
  const size_t middle = StoreLocation::unpack(records[20].location)->record_offset + 100;
  bytes[middle] ^= 4;
  write_file(path, bytes);
  CHECK(!reader.read_run(wanted));
}

TEST(store_key_derivation_is_that_of_the_standard) {
  // RFC 5869, test case 1, its first 32 bytes.
  const std::vector<uint8_t> key(22, 0x0B);
  std::vector<uint8_t> salt(13);
  for (uint8_t i = 0; i < 13; ++i) salt[i] = i;
  std::vector<uint8_t> info(10);
  for (uint8_t i = 0; i < 10; ++i) info[i] = static_cast<uint8_t>(0xF0 + i);
  const std::vector<uint8_t> expected{0x3C, 0xB2, 0x5F, 0x25, 0xFA, 0xAC, 0xD5, 0x7A,
                                      0x90, 0x43, 0x4F, 0x64, 0xD0, 0x36, 0x2F, 0x2A,
                                      0x2D, 0x2D, 0x0A, 0x90, 0xCF, 0x1A, 0x5A, 0x4C,
                                      0x5D, 0xB0, 0x2D, 0x56, 0xEC, 0xC4, 0xC5, 0xBF};
  std::vector<uint8_t> derived(32);
  hkdf_sha256(key, salt, info, derived);
  CHECK(derived == expected);
}

int key_error(const std::string& path) {
  try {
    StoreKey::load_or_make(path);
  } catch (const SysError& error) {
    return error.error();
  }
  return 0;
}

TEST(store_key_file_is_made_once_and_must_be_private) {
  const std::string path = test_folder() + "/key";
  const std::string text = StoreKey::load_or_make(path).text();
  CHECK(StoreKey::load_or_make(path).text() == text);
  struct stat status {};
  CHECK(::stat(path.c_str(), &status) == 0 && (status.st_mode & 0777) == 0600);
  CHECK(status.st_size == 32);
  ::chmod(path.c_str(), 0640);
  CHECK_EQUAL(key_error(path), EACCES);
  ::chmod(path.c_str(), 0600);
  CHECK(::truncate(path.c_str(), 31) == 0);
  CHECK_EQUAL(key_error(path), EINVAL);
  CHECK(::truncate(path.c_str(), 33) == 0);
  CHECK_EQUAL(key_error(path), EINVAL);
  CHECK_EQUAL(key_error("/dev/null"), EINVAL);
  CHECK_EQUAL(key_error("/nowhere/key"), ENOENT);
}

TEST(store_key_text_is_checked) {
  const StoreKey key = StoreKey::random();
  const std::string text = key.text();
  CHECK(StoreKey::from_text(text).text() == text);
  for (size_t at = 0; at < text.size(); ++at) {
    std::string other = text;
    other[at] = other[at] == '0' ? '1' : '0';
    bool refused = false;
    try {
      StoreKey::from_text(other);
    } catch (const FormatError&) {
      refused = true;
    }
    CHECK(refused);
  }
}

void round_trip(bool encrypted, bool compress) {
  const std::string folder = test_folder();
  WriterOptions options = writer_options(folder, encrypted);
  options.compress = compress;
  options.segment_bytes_max = 1 << 20;
  SegmentWriter writer(options);
  std::vector<TestRecord> records;
  for (uint64_t i = 0; i < 200; ++i) {
    records.push_back(append_record(writer, static_cast<int32_t>(i % 3 + 1),
                                    0x7F00'0000'0000 + i * 0x10000,
                                    test_pages(i, i % kRecordPagesMax + 1, i % 4 == 0)));
  }
  writer.sync();
  CHECK(compress || writer.segments() > 3);
  SegmentReader reader = make_reader(folder, options.key);
  for (const TestRecord& record : records) CHECK(reads_back(reader, record));
  for (size_t i = records.size(); i-- > 0;) {
    const TestRecord& record = records[i];
    const size_t pages = record.content.size() / kPageSize;
    std::vector<uint8_t> page(kPageSize);
    for (size_t at = 0; at < pages; ++at) {
      reader.read(pages_further(record.location, at), record.pid, record.address + at * kPageSize,
                  page);
      CHECK(std::memcmp(page.data(), record.content.data() + at * kPageSize, kPageSize) == 0);
    }
    const RecordView view = reader.record(pages_further(record.location, pages - 1), record.pid,
                                          record.address + (pages - 1) * kPageSize);
    CHECK(view.address == record.address && view.content.size() == record.content.size());
    CHECK(view.epoch == 9 && view.pid == record.pid);
  }
  CHECK(segment_of(records[0].location) == 1);
  CHECK_EQUAL(records[0].location >> 22 & 0xFFFFF, kFirstRecord / kRecordAlignment);
}

TEST(store_round_trip_encrypted) { round_trip(true, true); }
TEST(store_round_trip_encrypted_not_packed) { round_trip(true, false); }
TEST(store_round_trip_plain) { round_trip(false, true); }
TEST(store_round_trip_plain_not_packed) { round_trip(false, false); }

TEST(store_content_is_given_for_its_own_place_only) {
  const std::string folder = test_folder();
  SegmentWriter writer(writer_options(folder));
  const TestRecord record = append_record(writer, 7, 0x10000, test_pages(1, 4, false));
  writer.sync();
  SegmentReader reader = make_reader(folder, &test_key());
  std::vector<uint8_t> page(kPageSize);
  const auto read = [&](uint64_t location, int32_t pid, uint64_t address, size_t pages) {
    page.resize(pages * kPageSize);
    return failure_of([&] { reader.read(location, pid, address, page); });
  };
  for (int round = 0; round < 2; ++round) {  // the second time from memory
    CHECK(read(record.location, 8, 0x10000, 1) == StoreFailure::kDamaged);
    CHECK(read(record.location, 7, 0x11000, 1) == StoreFailure::kDamaged);
    CHECK(read(pages_further(record.location, 1), 7, 0x10000, 1) == StoreFailure::kDamaged);
    CHECK(read(pages_further(record.location, 4), 7, 0x14000, 1) == StoreFailure::kDamaged);
    CHECK(read(record.location, 7, 0x10000, 5) == StoreFailure::kDamaged);
    CHECK(read(record.location + (1 << 16), 7, 0x10000, 1) == StoreFailure::kDamaged);
    CHECK(read(record.location + (1 << 22), 7, 0x10000, 1) == StoreFailure::kDamaged);
    CHECK(read(record.location + (1ull << 42), 7, 0x10000, 1) == StoreFailure::kGone);
    CHECK(read(0, 7, 0x10000, 1) == StoreFailure::kDamaged);
    CHECK(!read(pages_further(record.location, 1), 7, 0x11000, 3));
  }
}

TEST(store_reads_what_is_in_memory_without_waiting) {
  const std::string folder = test_folder();
  SegmentWriter writer(writer_options(folder));
  const TestRecord record = append_record(writer, 7, 0x10000, test_pages(1, 8, true));
  writer.sync();
  SegmentReader reader = make_reader(folder, &test_key());
  std::vector<uint8_t> page(kPageSize);
  CHECK(!reader.try_read(record.location, 7, 0x10000, page));  // not even open
  CHECK(reads_back(reader, record));
  CHECK(reader.try_read(record.location, 7, 0x10000, page));
  CHECK(std::memcmp(page.data(), record.content.data(), kPageSize) == 0);
  CHECK(reader.try_record(record.location, 7, 0x10000).has_value());
  const TestRecord later = append_record(writer, 7, 0x20000, test_pages(2, 8, true));
  writer.sync();
  const bool there = reader.try_read(later.location, 7, 0x20000, page);
  note(there ? "a cached record was read without waiting" : "this file system cannot tell");
  CHECK(!there || std::memcmp(page.data(), later.content.data(), kPageSize) == 0);
}

TEST(store_reader_bounds_what_it_keeps_open) {
  const std::string folder = test_folder();
  WriterOptions options = writer_options(folder);
  options.segment_bytes_max = 96 << 10;
  SegmentWriter writer(options);
  std::vector<TestRecord> records;
  for (uint64_t i = 0; i < 40; ++i) {
    records.push_back(append_record(writer, 1, i << 20, test_pages(i, 8, true)));
  }
  writer.sync();
  CHECK(writer.segments() >= 20);
  const UniqueFd store = open_store({.path = folder});
  SegmentReader reader(open_generation(store.get(), folder, test_generation()),
                       {.path = folder,
                        .of = test_generation(),
                        .key = &test_key(),
                        .segments_open_max = 3,
                        .records_kept = 2});
  for (int round = 0; round < 2; ++round) {
    for (const TestRecord& record : records) CHECK(reads_back(reader, record));
  }
  size_t open_files = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    open_files += read_file(entry.path().string() + "/nothing").empty() &&
                          std::filesystem::exists(entry.path()) &&
                          std::filesystem::read_symlink(entry.path()).string().find("segment-") !=
                              std::string::npos
                      ? 1
                      : 0;
  }
  CHECK_EQUAL(open_files, 4u);  // three of the reader, one of the writer
}

double seconds(const std::function<void()>& work) {
  const uint64_t start = now_ns();
  work();
  return static_cast<double>(now_ns() - start) / 1e9;
}

std::string rounded(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.1f", value);
  return text;
}

void measure(const std::string& what, bool encrypted, bool compress, bool random) {
  constexpr uint64_t kRecords = 2000;
  const std::string folder = test_folder();
  WriterOptions options = writer_options(folder, encrypted);
  options.compress = compress;
  SegmentWriter writer(options);
  const std::vector<uint8_t> pages = test_pages(5, kRecordPagesMax, random);
  std::vector<uint64_t> locations;
  const uint64_t cpu = clock_us(CLOCK_PROCESS_CPUTIME_ID);
  const double appended = seconds([&] {
    for (uint64_t i = 0; i < kRecords; ++i) {
      locations.push_back(writer.append(1, i << 16, 1, pages).pack());
    }
  });
  const uint64_t append_cpu = clock_us(CLOCK_PROCESS_CPUTIME_ID) - cpu;
  const double synced = seconds([&] { writer.sync(); });
  SegmentReader reader = make_reader(folder, options.key);
  std::vector<uint8_t> page(kPageSize);
  reader.read(locations[0], 1, 0, page);
  const double read = seconds([&] {
    for (uint64_t i = 1; i < kRecords; ++i) reader.read(locations[i], 1, i << 16, page);
  });
  const double megabytes = kRecords * static_cast<double>(pages.size()) / 1e6;
  note(what + ": append " + rounded(megabytes / appended) + " MB/s (" +
       rounded(static_cast<double>(append_cpu) / kRecords) + " us of CPU a record), with sync " +
       rounded(megabytes / (appended + synced)) + " MB/s; read and decode " +
       rounded(read / kRecords * 1e6) + " us a record; " +
       rounded(static_cast<double>(writer.bytes_on_disk()) / kRecords) + " bytes a record on disk");
}

TEST(store_figures) {
  measure("AES, LZ4, shrinks", true, true, false);
  measure("AES, LZ4, does not shrink", true, true, true);
  measure("AES, raw", true, false, true);
  measure("CRC32C, LZ4, shrinks", false, true, false);
  measure("CRC32C, raw", false, false, true);
}

}  // namespace
}  // namespace replpage
