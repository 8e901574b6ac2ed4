// The channel refuses damage of every byte; the staging area hands out and takes back its room.
#include "core/channel/channel.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <cstring>

#include "core/base/crc32c.h"
#include "core/base/not_this_time.h"
#include "core/base/page.h"
#include "core/staging/epoch_runs.h"
#include "core/staging/page_stream.h"
#include "core/staging/staging.h"
#include "test/test.h"

namespace replpage {
namespace {

struct Pair {
  UniqueFd left, right;
};

Pair make_pair() {
  int ends[2];
  CHECK(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) == 0);
  return {UniqueFd(ends[0]), UniqueFd(ends[1])};
}

CommittedMessage sample() { return {.epoch = 7, .apply_us = 1234, .resident_bytes = 1 << 20}; }

Bytes raw_packet() {
  Pair pair = make_pair();
  Channel channel(std::move(pair.left));
  channel.send(MessageType::kCommitted, sample());
  Bytes packet(4096);
  const ssize_t got = ::recv(pair.right.get(), packet.data(), packet.size(), 0);
  CHECK(got > 0);
  packet.resize(static_cast<size_t>(got));
  return packet;
}

// "" when the packet was accepted.
std::string refusal_of(std::span<const uint8_t> packet) {
  Pair pair = make_pair();
  Channel channel(std::move(pair.right));
  CHECK(::send(pair.left.get(), packet.data(), packet.size(), 0) >= 0);
  try {
    const std::optional<ReceivedMessage> message = channel.receive(1000);
    CHECK(message.has_value());
    return "";
  } catch (const FormatError& error) {
    return error.what();
  }
}

uint64_t blocks_of(int fd) {
  struct stat facts {};
  CHECK(::fstat(fd, &facts) == 0);
  return static_cast<uint64_t>(facts.st_blocks) * 512;
}

TEST(channel_carries_a_message_and_its_descriptors) {
  Pair pair = make_pair();
  Channel left(std::move(pair.left));
  Channel right(std::move(pair.right));
  std::vector<UniqueFd> files;
  std::vector<int> numbers;
  for (size_t i = 0; i < kDescriptorsMax; ++i) {
    files.emplace_back(::open("/dev/null", O_RDONLY | O_CLOEXEC));
    numbers.push_back(files.back().get());
  }
  left.send(MessageType::kCommitted, sample(), numbers);
  std::optional<ReceivedMessage> message = right.receive(1000);
  CHECK(message && message->type == MessageType::kCommitted);
  CHECK(message->descriptors.size() == kDescriptorsMax);
  CHECK(decode<CommittedMessage>(message->body).apply_us == 1234);
  CHECK((::fcntl(message->descriptors[0].get(), F_GETFD) & FD_CLOEXEC) != 0);
}

TEST(channel_tells_a_gone_end_from_silence) {
  Pair pair = make_pair();
  Channel left(std::move(pair.left));
  CHECK(!left.receive(1) && !left.closed());
  pair.right.reset();
  CHECK(!left.receive(1000) && left.closed());
  bool broken = false;
  try {
    left.send(MessageType::kBuilt, Bytes{});
  } catch (const SysError& error) {
    broken = error.error() == EPIPE;
  }
  CHECK(broken);
}

TEST(channel_refuses_oversized_messages) {
  Pair pair = make_pair();
  Channel left(std::move(pair.left));
  Channel right(std::move(pair.right));
  left.send(MessageType::kCommit, Bytes(kMessageBytesMax - sizeof(MessageHeader)));
  CHECK(right.receive(1000)->body.size() == kMessageBytesMax - sizeof(MessageHeader));
  bool refused = false;
  try {
    left.send(MessageType::kCommit, Bytes(kMessageBytesMax));
  } catch (const SysError& error) {
    refused = error.error() == EMSGSIZE;
  }
  CHECK(refused);
  CHECK(!refusal_of(Bytes(kMessageBytesMax + 1)).empty());
}

TEST(channel_refuses_a_flip_of_every_bit) {
  const Bytes packet = raw_packet();
  CHECK(refusal_of(packet).empty());
  for (size_t at = 0; at < packet.size(); ++at) {
    for (int bit = 0; bit < 8; ++bit) {
      Bytes damaged = packet;
      damaged[at] ^= static_cast<uint8_t>(1 << bit);
      CHECK(!refusal_of(damaged).empty());
    }
  }
}

TEST(channel_refuses_every_truncation_and_an_extension) {
  const Bytes packet = raw_packet();
  for (size_t size = 0; size < packet.size(); ++size) {
    CHECK(!refusal_of({packet.data(), size}).empty());
  }
  Bytes longer = packet;
  longer.push_back(0);
  CHECK(!refusal_of(longer).empty());
}

TEST(channel_refuses_wrong_fields_under_a_right_checksum) {
  const auto resealed = [](auto change) {
    Bytes packet = raw_packet();
    MessageHeader header;
    std::memcpy(&header, packet.data(), sizeof header);
    change(header);
    header.header_crc =
        crc32c({reinterpret_cast<uint8_t*>(&header), offsetof(MessageHeader, header_crc)});
    std::memcpy(packet.data(), &header, sizeof header);
    return refusal_of(packet);
  };
  CHECK(resealed([](MessageHeader&) {}).empty());
  CHECK(!resealed([](MessageHeader& h) { h.version = 2; }).empty());
  CHECK(!resealed([](MessageHeader& h) { h.type = static_cast<MessageType>(0); }).empty());
  CHECK(!resealed([](MessageHeader& h) { h.type = static_cast<MessageType>(20); }).empty());
  CHECK(!resealed([](MessageHeader& h) { h.type = static_cast<MessageType>(45); }).empty());
  CHECK(!resealed([](MessageHeader& h) { h.body_bytes += 1; }).empty());
  CHECK(!resealed([](MessageHeader& h) { h.body_crc += 1; }).empty());
  CHECK(!resealed([](MessageHeader& h) { h.reserved = 1; }).empty());
}

TEST(bodies_with_random_content_never_decode_to_much) {
  uint32_t state = 1;
  for (int round = 0; round < 20'000; ++round) {
    Bytes body(static_cast<size_t>(round % 97));
    for (uint8_t& byte : body)
      byte = static_cast<uint8_t>((state = state * 1664525 + 1013904223) >> 24);
    try {
      (void)decode<DescriptorsMessage>(body);
      (void)decode<ConfigureMessage>(body);
    } catch (const FormatError&) {
    }
    try {
      (void)decode<PageRunList>(body);
    } catch (const FormatError&) {
    }
  }
}

TEST(staging_appends_spills_and_gives_memory_back) {
  StagingArea staging(
      {.memory_bytes = 8 << 20, .spill_bytes_max = 4 << 20, .spill_directory = "/tmp"});
  uint64_t last = 0;
  const auto fill = [&](std::span<uint8_t> room, int byte) {
    std::memset(room.data(), byte, room.size());
    last = staging.keep(room.size());
    staging.add({.pid = 5, .address = last, .length = room.size(), .data_offset = last});
  };
  for (int chunk = 0; chunk < 4; ++chunk) fill(staging.reserve(kStagingChunkBytes), chunk + 3);
  CHECK(last == 10 << 20 && staging.spilled_bytes() == 4 << 20);
  CHECK(staging.runs_waiting() == 2);  // one before the border, one after it
  uint8_t byte = 0;
  CHECK(::pread(staging.spill_fd(), &byte, 1, 2 << 20) == 1 && byte == 6);
  bool full = false;
  try {
    staging.reserve(kPageSize);
  } catch (const SysError& error) {
    full = error.error() == ENOSPC;
  }
  CHECK(full);
  // What is copied during a pause still finds memory, and then no disk.
  for (int chunk = 0; chunk < 2; ++chunk) fill(staging.reserve_in_memory(kStagingChunkBytes), 1);
  CHECK(last == 6 << 20 && staging.spilled_bytes() == 4 << 20);
  CHECK(staging.reserve_in_memory(kPageSize).empty());
  staging.reset();
  CHECK(blocks_of(staging.spill_fd()) != 0 && staging.used_bytes() == 0);  // warm
  for (int idle = 0; idle < 64; ++idle) staging.reset();
  CHECK(blocks_of(staging.memory_fd()) == 0 && blocks_of(staging.spill_fd()) == 0);
}

TEST(staging_keeps_an_encoded_structure_whole) {
  StagingArea staging(
      {.memory_bytes = 8 << 20, .spill_bytes_max = 16 << 20, .spill_directory = "/tmp"});
  staging.reserve(kPageSize);
  staging.keep(100);
  const Bytes bytes(12 << 20, 0x5A);
  const StagedBytes staged = staging.put_encoded(bytes);
  CHECK(staged.offset == staging.memory_bytes() && staged.crc == crc32c(bytes));
  Bytes back(bytes.size());
  CHECK(::pread(staging.spill_fd(), back.data(), back.size(), 0) == 12 << 20 && back == bytes);
}

// Whoever waits for a disk while the primary stands still harms it.
TEST(staging_keeps_memory_for_the_frozen_part) {
  StagingArea staging(
      {.memory_bytes = 16 << 20, .spill_bytes_max = 16 << 20, .spill_directory = "/tmp"});
  EpochRuns runs(staging);
  const auto put = [&](PageSink& sink, uint64_t address) {
    const std::span<uint8_t> room = sink.reserve(kStagingChunkBytes);
    const uint64_t offset = sink.keep(room.size());
    sink.add({.pid = 5, .address = address, .length = room.size(), .data_offset = offset});
    return offset;
  };
  uint64_t address = 0;
  for (int chunk = 0; chunk < 6; ++chunk) put(runs, address += kStagingChunkBytes);
  CHECK(staging.spilled_bytes() > 0);
  FrozenRuns frozen(runs, UINT64_MAX);
  bool refused = false;
  int in_memory = 0;
  try {
    for (;; ++in_memory) CHECK(put(frozen, address += kStagingChunkBytes) < 16u << 20);
  } catch (const NotThisTime&) {
    refused = true;
  }
  CHECK(refused && in_memory > 0);
  put(runs, address += kStagingChunkBytes);
  for (const PageRun& run : runs.all()) {
    CHECK(run.data_offset + run.length <= 16u << 20 || run.data_offset >= 16u << 20);
  }
  refused = false;
  try {
    FrozenRuns(runs, 0).reserve(kPageSize);
  } catch (const NotThisTime&) {
    refused = true;
  }
  CHECK(refused);
}

// A death waits for what the worker writes to the disk: for one piece at most, and then for none.
TEST(staging_makes_nobody_in_a_hurry_wait_for_the_disk) {
  int asked = 0;
  StagingArea staging({.memory_bytes = 16 << 20,
                       .spill_bytes_max = 16 << 20,
                       .spill_directory = "/tmp",
                       .check_wanted = [&asked] {
                         if (++asked == 5) throw std::runtime_error("not wanted");
                       }});
  const Bytes large(6 << 20, 7);
  CHECK_EQUAL(staging.put_encoded(large).offset, 0u);
  CHECK_EQUAL(asked, 0);
  bool thrown = false;
  try {
    staging.put_encoded(large);
  } catch (const std::runtime_error&) {
    thrown = true;
  }
  CHECK(thrown && asked == 5);
  struct stat file {};
  CHECK(::fstat(staging.spill_fd(), &file) == 0);
  CHECK_EQUAL(static_cast<uint64_t>(file.st_size), 4 * kSpillPieceBytes);
  staging.hurry();
  CHECK(staging.put_encoded(large).offset < 16u << 20);
  CHECK(staging.put_encoded(large).offset >= 16u << 20);  // all of the memory is in use
  CHECK_EQUAL(asked, 5);
  staging.reset();
  asked = 10;
  CHECK_EQUAL(staging.put_encoded(large).offset, 0u);
  CHECK(staging.put_encoded(large).offset >= 16u << 20);
  CHECK(asked > 10);
}

// Answers one kPages as a keeper would, after looking at the pages.
void answer_chunk(Channel& keeper, const uint8_t* memory, std::vector<uint64_t>& seen) {
  const std::optional<ReceivedMessage> message = keeper.receive(0);
  CHECK(message.has_value());
  const auto pages = decode<PagesMessage>(message->body);
  const std::span<const uint8_t> list(memory + pages.runs.offset, pages.runs.length);
  CHECK(crc32c(list) == pages.runs.crc);
  for (const PageRun& run : decode<PageRunList>(list).runs) {
    for (uint64_t at = 0; at < run.length; at += kPageSize) {
      uint64_t value = 0;
      std::memcpy(&value, memory + run.data_offset + at, sizeof value);
      CHECK(value == run.address + at);
      seen.push_back(value);
    }
  }
  keeper.send(MessageType::kPagesDone, Bytes{});
}

TEST(page_stream_loses_no_page_when_chunks_go_round) {
  StagingArea staging({});
  Pair pair = make_pair();
  Channel tracer(std::move(pair.left));
  Channel keeper(std::move(pair.right));
  void* memory =
      ::mmap(nullptr, staging.memory_bytes(), PROT_READ, MAP_SHARED, staging.memory_fd(), 0);
  std::vector<uint64_t> seen;
  PageStream stream(staging, {.send_pages =
                                  [&](StagedBytes runs) {
                                    tracer.send(MessageType::kPages,
                                                PagesMessage{.epoch = 1, .runs = runs});
                                  },
                              .wait_pages_done =
                                  [&] {
                                    answer_chunk(keeper, static_cast<const uint8_t*>(memory), seen);
                                    CHECK(tracer.receive(0)->type == MessageType::kPagesDone);
                                  }});
  constexpr uint64_t kPages = 40'000;  // more than the ring holds; every second address: no joining
  for (uint64_t page = 0; page < kPages; page += 8) {
    const std::span<uint8_t> room = stream.reserve(8 * kPageSize);
    for (uint64_t i = 0; i < 8; ++i) {
      const uint64_t address = (page + i) * 2 * kPageSize;
      std::memcpy(room.data() + i * kPageSize, &address, sizeof address);
    }
    const uint64_t at = stream.keep(room.size());
    for (uint64_t i = 0; i < 8; ++i) {
      stream.add({.pid = 1,
                  .address = (page + i) * 2 * kPageSize,
                  .length = kPageSize,
                  .data_offset = at + i * kPageSize});
    }
  }
  stream.finish();
  CHECK(seen.size() == kPages);
  for (uint64_t page = 0; page < kPages; ++page) CHECK(seen[page] == page * 2 * kPageSize);
  ::munmap(memory, staging.memory_bytes());
}

}  // namespace
}  // namespace replpage
