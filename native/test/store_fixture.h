// A page store in a folder of its own, for tests.
#pragma once

#include <fcntl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/store/segment_reader.h"
#include "core/store/segment_scan.h"
#include "core/store/segment_writer.h"
#include "core/store/store_format.h"
#include "test/test.h"

namespace replpage::testing {

// A folder on a real file system, gone at the end of the test.
inline std::string test_folder() {
  std::string path = "/var/tmp/replpage-store-XXXXXX";
  if (::mkdtemp(path.data()) == nullptr) throw std::runtime_error("mkdtemp failed");
  at_end([path] {
    ::umount2(path.c_str(), MNT_DETACH);  // where a test mounted something on it
    std::filesystem::remove_all(path);
  });
  return path;
}

inline const StoreKey& test_key() {
  static const StoreKey key = StoreKey::random();
  return key;
}

inline GenerationName test_generation(uint64_t generation = 3) {
  return {.group = "redis-1", .group_id = 0xABCD, .generation = generation};
}

inline WriterOptions writer_options(const std::string& folder, bool encrypted = true) {
  return {.store = {.path = folder, .writing = true, .allow_memory_file_systems = true},
          .of = test_generation(),
          .writer = 77,
          .key = encrypted ? &test_key() : nullptr};
}

inline SegmentReader make_reader(const std::string& folder, const StoreKey* key,
                                 const GenerationName& of = test_generation()) {
  const UniqueFd store = open_store({.path = folder, .allow_memory_file_systems = true});
  return SegmentReader(open_generation(store.get(), folder, of),
                       {.path = folder, .of = of, .key = key});
}

inline std::string segment_path(const std::string& folder, uint32_t number,
                                const GenerationName& of = test_generation()) {
  return folder + "/" + generation_path(of) + "/" + segment_file_name(number);
}

// Pages that differ from all others; `random`: that do not shrink.
inline std::vector<uint8_t> test_pages(uint64_t seed, size_t pages, bool random) {
  std::vector<uint8_t> bytes(pages * kPageSize);
  uint64_t state = seed * 2654435761u + 1;
  for (size_t i = 0; i + 8 <= bytes.size(); i += 8) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    const uint64_t word = random ? state ^ state >> 29 : (i % 64 == 0 ? state >> 40 : seed);
    std::memcpy(bytes.data() + i, &word, sizeof word);
  }
  return bytes;
}

struct TestRecord {
  uint64_t location = 0;
  int32_t pid = 0;
  uint64_t address = 0;
  std::vector<uint8_t> content;
};

inline TestRecord append_record(SegmentWriter& writer, int32_t pid, uint64_t address,
                                std::vector<uint8_t> content, uint64_t epoch = 9) {
  const StoreLocation location = writer.append(pid, address, epoch, content);
  return {
      .location = location.pack(), .pid = pid, .address = address, .content = std::move(content)};
}

inline bool reads_back(SegmentReader& reader, const TestRecord& record) {
  std::vector<uint8_t> got(record.content.size());
  reader.read(record.location, record.pid, record.address, got);
  return got == record.content;
}

inline std::vector<uint8_t> read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

inline void write_file(const std::string& path, std::span<const uint8_t> bytes) {
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file.write(reinterpret_cast<const char*>(bytes.data()),
             static_cast<std::streamsize>(bytes.size()));
}

// The kind of the StoreError that `work` throws; nullopt when it throws none.
inline std::optional<StoreFailure> failure_of(const std::function<void()>& work) {
  try {
    work();
  } catch (const StoreError& error) {
    return error.kind();
  }
  return std::nullopt;
}

}  // namespace replpage::testing
