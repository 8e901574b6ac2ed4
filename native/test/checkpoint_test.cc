// Checkpoints in a page store: what is whole is found, what is damaged is refused by name.
#include <algorithm>

#include "core/store/checkpoint_directory.h"
#include "test/store_fixture.h"

namespace replpage::testing {
namespace {

CheckpointManifest manifest_of(const WriterOptions& options, std::vector<uint32_t> segments) {
  return {.name = options.of.group,
          .group_id = options.of.group_id,
          .generation = options.of.generation,
          .epoch = 41,
          .uid = 1000,
          .gid = 1000,
          .options = "{\"name\":\"redis-1\"}",
          .kernel = "Linux",
          .boot_id = "b",
          .host_pid = 7,
          .start_time = 99,
          .cold_pages = 3,
          .state_bytes = 5000,
          .state_crc = 0x1234,
          .state = {0x1234567},
          .segments = std::move(segments)};
}

struct Place {
  std::string folder = test_folder();
  WriterOptions options = writer_options(folder);
  SegmentWriter writer{options};
  UniqueFd store = open_store(options.store);

  WrittenCheckpoint checkpoint(uint64_t epoch) {
    CheckpointManifest manifest = manifest_of(options, {1});
    manifest.epoch = epoch;
    return write_checkpoint(store.get(), folder, writer.directory(), manifest, options.key);
  }
  FoundCheckpoint find(const std::string& id = "", const StoreKey* key = &test_key()) {
    return find_checkpoint(store.get(), folder, options.of.group, id, key);
  }
  [[nodiscard]] std::string path_of(const std::string& id) const {
    return folder + "/" + options.of.group + "/checkpoint-" + id;
  }
};

TEST(checkpoint_outlives_its_generation) {
  Place place;
  const TestRecord record = append_record(place.writer, 7, 0x10000, test_pages(1, 3, true));
  place.writer.sync();
  const WrittenCheckpoint written = place.checkpoint(41);
  CHECK(written.linked_bytes > 3 * kPageSize);
  remove_generation(place.store.get(), place.folder, place.options.of);
  FoundCheckpoint found = place.find();
  CHECK_EQUAL(found.id, written.id);
  CHECK_EQUAL(found.manifest.epoch, 41u);
  CHECK_EQUAL(found.manifest.options, std::string("{\"name\":\"redis-1\"}"));
  SegmentReader reader(std::move(found.directory),
                       {.path = place.folder, .of = place.options.of, .key = &test_key()});
  CHECK(reads_back(reader, record));
}

TEST(checkpoint_newest_whole_one_is_found) {
  Place place;
  append_record(place.writer, 7, 0x10000, test_pages(1, 1, true));
  place.writer.sync();
  const WrittenCheckpoint first = place.checkpoint(1);
  const WrittenCheckpoint second = place.checkpoint(2);
  CHECK_EQUAL(place.find().id, second.id);
  CHECK_EQUAL(place.find(first.id).manifest.epoch, 1u);
  // As a pager that was killed leaves it.
  std::filesystem::remove(place.path_of(second.id) + "/manifest");
  CHECK_EQUAL(place.find().id, first.id);
  const WrittenCheckpoint third = place.checkpoint(3);
  remove_other_checkpoints(place.store.get(), place.folder, place.options.of.group, third.id);
  CHECK(!std::filesystem::exists(place.path_of(first.id)));
  CHECK(!std::filesystem::exists(place.path_of(second.id)));
  CHECK_EQUAL(place.find().id, third.id);
  CHECK(failure_of([&] { (void)place.find(first.id); }) == StoreFailure::kGone);
}

TEST(checkpoint_in_use_is_not_removed) {
  Place place;
  append_record(place.writer, 7, 0x10000, test_pages(1, 3, true));
  place.writer.sync();
  const WrittenCheckpoint first = place.checkpoint(1);
  const WrittenCheckpoint second = place.checkpoint(2);
  const auto remove = [&](const std::string& id) {
    return remove_checkpoints(place.store.get(), place.folder, place.options.of.group, id);
  };
  {
    FoundCheckpoint found = place.find(first.id);
    // As a keeper has it: the same open directory.
    const UniqueFd keeper(::fcntl(found.directory.get(), F_DUPFD_CLOEXEC, 0));
    found.directory.reset();
    CHECK(failure_of([&] { (void)remove(""); }) == StoreFailure::kUnusable);
    CHECK(std::filesystem::exists(place.path_of(second.id) + "/manifest"));
    CHECK_EQUAL(remove(second.id).ids.size(), 1u);
    CHECK(failure_of([&] { (void)remove(first.id); }) == StoreFailure::kUnusable);
    const WrittenCheckpoint third = place.checkpoint(3);
    remove_other_checkpoints(place.store.get(), place.folder, place.options.of.group, third.id);
    CHECK(std::filesystem::exists(place.path_of(first.id) + "/manifest"));
  }
  const RemovedCheckpoints removed = remove("");
  CHECK_EQUAL(removed.ids.size(), 2u);
  CHECK_EQUAL(removed.freed_bytes, 0u);  // the generation has it still
  CHECK(failure_of([&] { (void)place.find(); }) == StoreFailure::kGone);
  CHECK(failure_of([&] { (void)remove(""); }) == StoreFailure::kGone);
}

TEST(checkpoint_counts_in_the_limit_of_its_group) {
  Place place;
  place.options.bytes_max = 64 * 1024;
  place.options.compress = false;
  place.options.again = true;
  SegmentWriter writer(place.options);
  const auto append = [&] {
    append_record(writer, 7, 0x10000, test_pages(1, 8, true));
    writer.sync();
  };
  append();
  const uint64_t one = writer.bytes_on_disk();
  place.checkpoint(1);
  place.checkpoint(2);
  writer.count_checkpoints();
  CHECK_EQUAL(writer.bytes_on_disk(), one);  // nothing is kept by them alone
  writer.drop_segment(1);
  CHECK_EQUAL(writer.bytes_on_disk(), one);
  CHECK(failure_of([&] {
          append();
          append();
        }) == StoreFailure::kFull);
  const uint64_t before = writer.bytes_on_disk();
  const RemovedCheckpoints removed =
      remove_checkpoints(place.store.get(), place.folder, place.options.of.group, "");
  CHECK_EQUAL(removed.ids.size(), 2u);
  CHECK_EQUAL(removed.freed_bytes, one);
  append();  // finds out by itself
  CHECK(writer.bytes_on_disk() <= before);
}

TEST(checkpoint_that_fails_leaves_the_earlier_one) {
  Place place;
  append_record(place.writer, 7, 0x10000, test_pages(1, 1, true));
  place.writer.sync();
  const WrittenCheckpoint first = place.checkpoint(1);
  CheckpointManifest manifest = manifest_of(place.options, {1, 99});
  CHECK(failure_of([&] {
          (void)write_checkpoint(place.store.get(), place.folder, place.writer.directory(),
                                 manifest, &test_key());
        }) == StoreFailure::kGone);
  CHECK_EQUAL(place.find().id, first.id);
  manifest.options.assign(kManifestBytesMax, 'x');
  CHECK(failure_of([&] { (void)seal_manifest(manifest, &test_key()); }) == StoreFailure::kUnusable);
}

TEST(checkpoint_every_flipped_bit_is_found) {
  Place place;
  for (const StoreKey* key : {&test_key(), static_cast<const StoreKey*>(nullptr)}) {
    CheckpointManifest manifest = manifest_of(place.options, {1});
    const std::vector<uint8_t> whole = seal_manifest(manifest, key);
    CHECK_EQUAL(open_manifest(whole, key, "m").start_time, 99u);
    for (size_t at = 0; at < whole.size(); ++at) {
      for (int bit = 0; bit < 8; ++bit) {
        std::vector<uint8_t> damaged = whole;
        damaged[at] ^= static_cast<uint8_t>(1 << bit);
        CHECK(failure_of([&] { (void)open_manifest(damaged, key, "m"); }).has_value());
      }
    }
    for (size_t size = 0; size < whole.size(); ++size) {
      const auto part = std::span(whole).first(size);
      CHECK(failure_of([&] { (void)open_manifest(part, key, "m"); }) == StoreFailure::kDamaged);
    }
    std::vector<uint8_t> longer = whole;
    longer.push_back(0);
    CHECK(failure_of([&] { (void)open_manifest(longer, key, "m"); }) == StoreFailure::kDamaged);
  }
}

TEST(checkpoint_of_another_key_or_the_future_is_told_apart) {
  Place place;
  CheckpointManifest manifest = manifest_of(place.options, {1});
  const std::vector<uint8_t> whole = seal_manifest(manifest, &test_key());
  const StoreKey other = StoreKey::random();
  CHECK(failure_of([&] { (void)open_manifest(whole, &other, "m"); }) == StoreFailure::kWrongKey);
  CHECK(failure_of([&] { (void)open_manifest(whole, nullptr, "m"); }) == StoreFailure::kWrongKey);
  const std::vector<uint8_t> plain = seal_manifest(manifest, nullptr);
  CHECK(failure_of([&] { (void)open_manifest(plain, &other, "m"); }) == StoreFailure::kWrongKey);
  SegmentHeader header;
  std::memcpy(&header, whole.data(), sizeof header);
  header.version = kCheckpointVersion + 1;
  seal_header(header);
  std::vector<uint8_t> future = whole;
  std::memcpy(future.data(), &header, sizeof header);
  CHECK(failure_of([&] { (void)open_manifest(future, &test_key(), "m"); }) ==
        StoreFailure::kUnusable);
}

TEST(checkpoint_of_another_name_is_refused) {
  Place place;
  append_record(place.writer, 7, 0x10000, test_pages(1, 1, true));
  place.writer.sync();
  const std::string id = place.checkpoint(1).id;
  const std::string later = id.substr(0, 17) + "9" + id.substr(17);
  std::filesystem::rename(place.path_of(id), place.path_of(later));
  CHECK(failure_of([&] { (void)place.find(); }) == StoreFailure::kDamaged);
}

}  // namespace
}  // namespace replpage::testing
