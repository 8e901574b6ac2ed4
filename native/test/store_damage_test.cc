#include <random>

#include "core/store/record_codec.h"
#include "test/store_fixture.h"

namespace replpage {
namespace {

using namespace testing;

// A small segment with one record of every kind.
struct Sample {
  std::string folder = test_folder();
  bool encrypted;
  std::vector<TestRecord> records;
  std::vector<uint8_t> bytes;

  explicit Sample(bool with_key) : encrypted(with_key) {
    SegmentWriter writer(writer_options(folder, encrypted));
    records.push_back(append_record(writer, 1, 0x10000, test_pages(1, 2, false)));
    records.push_back(append_record(writer, 2, 0x20000, test_pages(2, 1, true)));
    records.push_back(append_record(writer, 1, 0x30000, test_pages(3, 1, false)));
    writer.sync();
    bytes = read_file(path());
  }
  [[nodiscard]] const StoreKey* key() const { return encrypted ? &test_key() : nullptr; }
  [[nodiscard]] std::string path() const { return segment_path(folder, 1); }
  [[nodiscard]] SegmentScan scan(const std::function<void(const ScannedRecord&)>& visit) const {
    const UniqueFd store = open_store({.path = folder});
    const UniqueFd generation = open_generation(store.get(), folder, test_generation());
    return scan_segment(generation.get(), folder, test_generation(), 1, key(), visit);
  }
};

// How many records are refused. Fails when wrong content is given.
size_t refused_records(const Sample& sample, SegmentReader& reader) {
  size_t refused = 0;
  for (const TestRecord& record : sample.records) {
    const auto failure = failure_of([&] { CHECK(reads_back(reader, record)); });
    if (failure) ++refused;
  }
  return refused;
}

// Changes bytes of a file in place.
class FileBytes {
 public:
  explicit FileBytes(const std::string& path) : fd_(::open(path.c_str(), O_WRONLY | O_CLOEXEC)) {}
  void set(size_t at, uint8_t byte) {
    CHECK(::pwrite(fd_.get(), &byte, 1, static_cast<off_t>(at)) == 1);
  }

 private:
  UniqueFd fd_;
};

void flip_everything(bool encrypted) {
  const Sample sample(encrypted);
  FileBytes file(sample.path());
  const UniqueFd store = open_store({.path = sample.folder});
  const UniqueFd generation = open_generation(store.get(), sample.folder, test_generation());
  std::vector<size_t> unnoticed;
  for (size_t at = 0; at < sample.bytes.size(); ++at) {
    for (int bit = 0; bit < 8; ++bit) {
      file.set(at, static_cast<uint8_t>(sample.bytes[at] ^ 1 << bit));
      SegmentReader reader(UniqueFd(::dup(generation.get())),
                           {.path = sample.folder, .of = test_generation(), .key = sample.key()});
      if (refused_records(sample, reader) == 0) unnoticed.push_back(at);
    }
    file.set(at, sample.bytes[at]);
  }
  // Only what fills up to the next record means nothing.
  size_t filling = 0;
  for (const TestRecord& record : sample.records) {
    const StoreLocation at = *StoreLocation::unpack(record.location);
    RecordHeader header;
    std::memcpy(&header, sample.bytes.data() + at.record_offset, sizeof header);
    const uint64_t end = at.record_offset + record_bytes(header);
    const uint64_t next = record_ceil(end);
    filling += next - end;
    std::erase_if(unnoticed, [&](size_t offset) { return offset >= end && offset < next; });
  }
  note(std::to_string(sample.bytes.size()) + " bytes, of them " + std::to_string(filling) +
       " of filling");
  CHECK(filling < 3 * kRecordAlignment);
  CHECK_EQUAL(unnoticed.size(), 0u);
}

TEST(store_refuses_a_flip_of_every_bit_encrypted) { flip_everything(true); }
TEST(store_refuses_a_flip_of_every_bit_plain) { flip_everything(false); }

TEST(store_refuses_wrong_fields_under_right_checksums) {
  const Sample sample(true);
  const size_t at = StoreLocation::unpack(sample.records[0].location)->record_offset;
  const auto refused = [&](const std::function<void(RecordHeader&)>& change) {
    std::vector<uint8_t> bytes = sample.bytes;
    RecordHeader header;
    std::memcpy(&header, bytes.data() + at, sizeof header);
    change(header);
    seal_header(header);
    std::memcpy(bytes.data() + at, &header, sizeof header);
    write_file(sample.path(), bytes);
    SegmentReader reader = make_reader(sample.folder, sample.key());
    std::vector<uint8_t> page(kPageSize);
    return failure_of([&] { reader.read(sample.records[0].location, 1, 0x10000, page); }) ==
           StoreFailure::kDamaged;
  };
  CHECK(!refused([](RecordHeader&) {}));
  CHECK(refused([](RecordHeader& h) { h.magic ^= 1; }));
  CHECK(refused([](RecordHeader& h) { h.encoding = RecordEncoding::kRaw; }));
  CHECK(refused([](RecordHeader& h) { h.encoding = static_cast<RecordEncoding>(2); }));
  CHECK(refused([](RecordHeader& h) { h.pages = 1; }));
  CHECK(refused([](RecordHeader& h) { h.pages = 0; }));
  CHECK(refused([](RecordHeader& h) { h.pages = 16; }));
  CHECK(refused([](RecordHeader& h) { h.reserved = 1; }));
  CHECK(refused([](RecordHeader& h) { h.stored_bytes -= 1; }));
  CHECK(refused([](RecordHeader& h) { h.stored_bytes = 0; }));
  CHECK(refused([](RecordHeader& h) { h.stored_bytes = UINT32_MAX; }));
  CHECK(refused([](RecordHeader& h) { h.pid += 1; }));
  CHECK(refused([](RecordHeader& h) { h.address += kPageSize; }));
  CHECK(refused([](RecordHeader& h) { h.epoch += 1; }));
  CHECK(refused([](RecordHeader& h) { h.generation += 1; }));
  CHECK(refused([](RecordHeader& h) { h.segment += 1; }));
  CHECK(refused([](RecordHeader& h) { h.position += 1; }));
  CHECK(refused([](RecordHeader& h) { h.attempt += 1; }));
}

std::optional<StoreFailure> segment_header_failure(
    const Sample& sample, const std::function<void(SegmentHeader&)>& change) {
  std::vector<uint8_t> bytes = sample.bytes;
  SegmentHeader header;
  std::memcpy(&header, bytes.data(), sizeof header);
  change(header);
  seal_header(header);
  std::memcpy(bytes.data(), &header, sizeof header);
  write_file(sample.path(), bytes);
  SegmentReader reader = make_reader(sample.folder, sample.key());
  std::vector<uint8_t> page(kPageSize);
  return failure_of([&] { reader.read(sample.records[0].location, 1, 0x10000, page); });
}

TEST(store_checks_a_segment_s_header) {
  const Sample sample(true);
  const auto failure = [&](const std::function<void(SegmentHeader&)>& change) {
    return segment_header_failure(sample, change);
  };
  CHECK(!failure([](SegmentHeader&) {}));
  CHECK(failure([](SegmentHeader& h) { h.version = 2; }) == StoreFailure::kUnusable);
  CHECK(failure([](SegmentHeader& h) { h.version = 0; }) == StoreFailure::kDamaged);
  CHECK(failure([](SegmentHeader& h) { h.magic += 1; }) == StoreFailure::kDamaged);
  CHECK(failure([](SegmentHeader& h) { h.flags |= 2; }) == StoreFailure::kDamaged);
  CHECK(failure([](SegmentHeader& h) { h.group_id += 1; }) == StoreFailure::kDamaged);
  CHECK(failure([](SegmentHeader& h) { h.generation += 1; }) == StoreFailure::kDamaged);
  CHECK(failure([](SegmentHeader& h) { h.number += 1; }) == StoreFailure::kDamaged);
  CHECK(failure([](SegmentHeader& h) { h.reserved = 1; }) == StoreFailure::kDamaged);
  CHECK(failure([](SegmentHeader& h) { h.padding[35] = 1; }) == StoreFailure::kDamaged);
  CHECK(failure([](SegmentHeader& h) { h.salt[0] ^= 1; }) == StoreFailure::kWrongKey);
  CHECK(failure([](SegmentHeader& h) { h.key_check[0] ^= 1; }) == StoreFailure::kWrongKey);
  // Nobody who writes to the store can switch the authentication off.
  CHECK(failure([](SegmentHeader& h) { h.flags = 0; }) == StoreFailure::kWrongKey);
}

TEST(store_tells_a_wrong_key_from_damage) {
  const Sample sealed(true);
  const Sample open(false);
  const auto failure = [](const Sample& sample, const StoreKey* key) {
    SegmentReader reader = make_reader(sample.folder, key);
    return failure_of([&] { reads_back(reader, sample.records[0]); });
  };
  const StoreKey other = StoreKey::random();
  CHECK(failure(sealed, &other) == StoreFailure::kWrongKey);
  CHECK(failure(sealed, nullptr) == StoreFailure::kWrongKey);
  CHECK(failure(open, &test_key()) == StoreFailure::kWrongKey);
  CHECK(!failure(sealed, &test_key()) && !failure(open, nullptr));
}

TEST(store_refuses_segments_of_others) {
  for (const bool encrypted : {true, false}) {
    const Sample sample(encrypted);
    const Sample twin(encrypted);  // same names, other salt
    std::vector<uint8_t> mixed = sample.bytes;
    std::copy(twin.bytes.begin() + kFirstRecord, twin.bytes.end(), mixed.begin() + kFirstRecord);
    write_file(sample.path(), mixed);
    SegmentReader reader = make_reader(sample.folder, sample.key());
    CHECK_EQUAL(refused_records(sample, reader), 3u);

    WriterOptions options = writer_options(sample.folder, encrypted);
    options.of.generation = 4;
    SegmentWriter writer(options);
    append_record(writer, 1, 0x10000, test_pages(1, 2, false));
    writer.sync();
    write_file(sample.path(), read_file(segment_path(sample.folder, 1, options.of)));
    SegmentReader again = make_reader(sample.folder, sample.key());
    CHECK_EQUAL(refused_records(sample, again), 3u);
  }
}

TEST(store_refuses_every_truncation) {
  const Sample sample(true);
  const size_t step = 7;  // and the borders of records with it: all of them are multiples of 64
  for (size_t size = 0; size < sample.bytes.size(); size += size % 64 == 0 ? 1 : step) {
    write_file(sample.path(), {sample.bytes.data(), size});
    SegmentReader reader = make_reader(sample.folder, sample.key());
    const StoreLocation last = *StoreLocation::unpack(sample.records[2].location);
    RecordHeader header;
    std::memcpy(&header, sample.bytes.data() + last.record_offset, sizeof header);
    const bool whole = size >= last.record_offset + record_bytes(header);
    CHECK_EQUAL(refused_records(sample, reader) == 0, whole);
    if (size < sizeof(SegmentHeader)) continue;
    uint64_t found = 0;
    const SegmentScan scan = sample.scan([&](const ScannedRecord& record) {
      CHECK(std::equal(record.content.begin(), record.content.end(),
                       sample.records[found].content.begin()));
      CHECK_EQUAL(record.location.pack(), sample.records[found++].location);
    });
    CHECK_EQUAL(scan.records, found);
    CHECK(scan.damages.empty());
    CHECK(found < 3 || whole);
    CHECK(scan.torn_tail || size <= scan.tail_offset);
  }
}

TEST(store_scan_goes_on_behind_damage) {
  const Sample sample(true);
  std::vector<uint8_t> bytes = sample.bytes;
  bytes[StoreLocation::unpack(sample.records[1].location)->record_offset + 100] ^= 1;
  write_file(sample.path(), bytes);
  uint64_t found = 0;
  const SegmentScan scan = sample.scan([&](const ScannedRecord& record) {
    CHECK_EQUAL(record.location.pack(), sample.records[found].location);
    found += 2;
  });
  CHECK_EQUAL(scan.records, 2u);
  CHECK_EQUAL(scan.damages.size(), 1u);
  CHECK_EQUAL(scan.damages[0].offset,
              StoreLocation::unpack(sample.records[1].location)->record_offset);
  CHECK(!scan.torn_tail && scan.pages == 3);
}

TEST(store_scan_survives_anything) {
  std::mt19937 random(4711);
  uint64_t sound = 0;
  for (const bool encrypted : {true, false}) {
    const Sample sample(encrypted);
    for (int round = 0; round < 1500; ++round) {
      std::vector<uint8_t> bytes = sample.bytes;
      for (unsigned changes = random() % 8; changes > 0; --changes) {
        const size_t at = random() % bytes.size();
        const size_t length = std::min<size_t>(random() % 300, bytes.size() - at);
        switch (random() % 4) {
          case 0:
            bytes[at] = static_cast<uint8_t>(random());
            break;
          case 1:
            std::fill_n(bytes.begin() + static_cast<ptrdiff_t>(at), length, 0);
            break;
          case 2:
            bytes.resize(std::max<size_t>(at, 1));
            break;
          default:
            bytes.insert(bytes.begin() + static_cast<ptrdiff_t>(at), length, 0x52);
        }
      }
      write_file(sample.path(), bytes);
      const auto failure = failure_of([&] {
        (void)sample.scan([&](const ScannedRecord& record) {
          ++sound;
          const auto fits = [&](const TestRecord& r) {
            return r.location == record.location.pack() &&
                   std::equal(r.content.begin(), r.content.end(), record.content.begin(),
                              record.content.end());
          };
          CHECK(std::any_of(sample.records.begin(), sample.records.end(), fits));
        });
      });
      CHECK(!failure || failure == StoreFailure::kDamaged || failure == StoreFailure::kWrongKey);
    }
  }
  note(std::to_string(sound) + " sound records found");
  CHECK(sound > 100);
}

}  // namespace
}  // namespace replpage
