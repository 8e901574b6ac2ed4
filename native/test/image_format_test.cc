#include <sys/syscall.h>

#include <algorithm>
#include <random>

#include "core/image/group_check.h"
#include "test/allocation_count.h"
#include "test/test.h"

namespace replpage::testing {
namespace {

// Growing lists are copied as they double, and an element is larger in memory than encoded.
constexpr size_t kAllocationFactorMax = 32;

ThreadImage make_thread(int32_t tid) {
  ThreadImage thread;
  thread.tid = tid;
  thread.host_tid = tid + 1000;
  thread.registers.rip = 0x401000;
  thread.registers.orig_rax = SYS_futex;
  thread.xstate.assign(832, 0x5A);
  thread.name = "worker";
  thread.scheduling.affinity = {3, 0, 0, 0, 0, 0, 0, 0};
  thread.credentials.groups = {4, 24, 1000};
  thread.pending.resize(2);
  for (SignalInfo& info : thread.pending) info[0] = 34;
  return thread;
}

MappingImage make_mapping(uint64_t start, MappingKind kind, std::string path) {
  MappingImage mapping;
  mapping.start = start;
  mapping.end = start + 16 * kPageSize;
  mapping.kind = kind;
  mapping.prot = 3;
  mapping.path = std::move(path);
  return mapping;
}

ProcessImage make_process(int32_t pid, int32_t parent, uint32_t file_table) {
  ProcessImage process;
  process.pid = pid;
  process.parent = parent;
  process.file_table = file_table;
  process.executable = "/usr/bin/redis-server";
  process.working_directory = "/var/lib/redis";
  process.root_directory = "/";
  process.layout.auxv = {3, 0x400040, 9, 0x401000, 0, 0};
  process.mappings = {make_mapping(0x400000, MappingKind::kFilePrivate, "/usr/bin/redis-server"),
                      make_mapping(0x600000, MappingKind::kAnonymous, ""),
                      make_mapping(0x7f0000000000, MappingKind::kSharedObject, "cache")};
  process.threads = {make_thread(pid), make_thread(pid + 1)};
  process.actions.resize(64);
  process.limits.resize(16);
  process.pending.resize(1);
  process.pending[0][0] = 10;
  process.posix_timers.resize(2);
  process.posix_timers[1].id = 5;
  return process;
}

OpenFileImage make_file(OpenFileKind kind, std::string path) {
  OpenFileImage file;
  file.kind = kind;
  file.path = std::move(path);
  return file;
}

GroupImage make_group() {
  GroupImage image;
  image.epoch = 7;
  image.processes = {make_process(100, 0, 0), make_process(200, 100, 1)};
  image.zombies = {{.pid = 300,
                    .parent = 100,
                    .process_group = 100,
                    .session = 100,
                    .wait_status = 256,
                    .name = "sh"}};
  image.file_tables.resize(2);
  image.open_files = {make_file(OpenFileKind::kRegular, "/var/lib/redis/dump.rdb"),
                      make_file(OpenFileKind::kTcpSocket, ""), make_file(OpenFileKind::kEpoll, "")};
  image.open_files[1].socket.options = {{.level = 1, .name = 2, .value = {1, 0, 0, 0}}};
  image.open_files[1].socket.queue = {{1, 2, 3}, {}};
  image.open_files[2].watches = {{.fd = 4, .events = 1, .data = 4, .target = 1}};
  image.open_files[0].locks = {{.exclusive = true, .length = 10, .owner = 100}};
  for (FileTableImage& table : image.file_tables) {
    table.descriptors = {{.fd = 3, .open_file = 0},
                         {.fd = 4, .open_file = 1},
                         {.fd = 5, .close_on_exec = true, .open_file = 2}};
  }
  image.shared_objects = {{.id = 0, .device = 1, .inode = 77, .size = 65536, .name = "cache"}};
  return image;
}

// True when the bytes decode into an image that makes sense. Anything but FormatError is a failure.
bool accepted(std::span<const uint8_t> bytes) {
  const size_t before = allocated_bytes();
  bool good = true;
  try {
    check_group_image(decode<GroupImage>(bytes));
  } catch (const FormatError&) {
    good = false;
  }
  CHECK(allocated_bytes() - before <= kAllocationFactorMax * (bytes.size() + 4096));
  return good;
}

TEST(a_group_image_survives_encoding) {
  GroupImage image = make_group();
  const Bytes bytes = encode(image);
  GroupImage decoded = decode<GroupImage>(bytes);
  check_group_image(decoded);
  CHECK(encode(decoded) == bytes);
  CHECK_EQUAL(decoded.processes[1].threads[1].name, "worker");
  CHECK_EQUAL(decoded.open_files[1].socket.queue.size(), 2u);
}

TEST(a_group_image_that_is_cut_or_continued_is_refused) {
  GroupImage image = make_group();
  Bytes bytes = encode(image);
  for (size_t length = 0; length < bytes.size(); ++length) {
    CHECK(!accepted(std::span(bytes).first(length)));
  }
  CHECK(accepted(bytes));
  bytes.push_back(0);
  CHECK(!accepted(bytes));
}

TEST(a_group_image_with_any_byte_damaged_never_crashes_the_decoder) {
  GroupImage image = make_group();
  Bytes bytes = encode(image);
  size_t refused = 0;
  for (size_t at = 0; at < bytes.size(); ++at) {
    for (const uint8_t change : {0x01, 0x80, 0xFF}) {
      bytes[at] ^= change;
      if (!accepted(bytes)) ++refused;
      bytes[at] ^= change;
    }
  }
  CHECK(refused > 0);
  note(std::to_string(refused) + " of " + std::to_string(3 * bytes.size()) + " refused");
}

TEST(a_group_image_of_random_damage_never_crashes_the_decoder) {
  GroupImage image = make_group();
  const Bytes original = encode(image);
  std::mt19937 random(20261122);
  for (int round = 0; round < 3000; ++round) {
    Bytes bytes = original;
    for (int change = 0; change < 8; ++change) {
      bytes[random() % bytes.size()] = static_cast<uint8_t>(random() % 4 == 0 ? 0xFF : random());
    }
    accepted(bytes);
  }
}

TEST(a_group_image_that_contradicts_itself_is_refused) {
  const auto refused = [](void (*damage)(GroupImage&)) {
    GroupImage image = make_group();
    damage(image);
    return !accepted(encode(image));
  };
  CHECK(refused([](GroupImage& g) { g.processes.clear(); }));
  CHECK(refused([](GroupImage& g) { g.processes[1].parent = 99; }));
  CHECK(refused([](GroupImage& g) { g.processes[1].pid = 100; }));
  CHECK(refused([](GroupImage& g) { g.processes[0].file_table = 2; }));
  CHECK(refused([](GroupImage& g) { g.processes[0].threads.clear(); }));
  CHECK(refused([](GroupImage& g) { g.processes[0].threads[1].tid = 100; }));
  CHECK(refused([](GroupImage& g) { g.processes[0].threads[0].pending[0][0] = 65; }));
  CHECK(refused([](GroupImage& g) { g.processes[0].mappings[1].start += 1; }));
  CHECK(refused([](GroupImage& g) { g.processes[0].mappings[1].end = 0x600000; }));
  CHECK(refused(
      [](GroupImage& g) { std::swap(g.processes[0].mappings[0], g.processes[0].mappings[1]); }));
  CHECK(refused(
      [](GroupImage& g) { g.processes[0].mappings[0].kind = static_cast<MappingKind>(0); }));
  CHECK(refused([](GroupImage& g) { g.processes[0].actions.resize(63); }));
  CHECK(refused([](GroupImage& g) { g.processes[0].executable = std::string("/a\0b", 4); }));
  CHECK(refused([](GroupImage& g) { g.open_files[0].kind = static_cast<OpenFileKind>(19); }));
  CHECK(refused([](GroupImage& g) { g.open_files[2].watches[0].target = 3; }));
  CHECK(refused([](GroupImage& g) { g.file_tables[0].descriptors[0].fd = 4; }));
  CHECK(refused([](GroupImage& g) { g.file_tables[0].descriptors[0].open_file = 3; }));
  CHECK(refused([](GroupImage& g) { g.shared_objects.push_back(g.shared_objects[0]); }));
}

}  // namespace
}  // namespace replpage::testing
