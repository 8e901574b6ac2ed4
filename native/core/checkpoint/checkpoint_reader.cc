#include "core/checkpoint/checkpoint_reader.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "core/base/crc32c.h"
#include "core/base/sys_error.h"
#include "core/image/group_check.h"

namespace replpage {
namespace {

// A store that does not answer for so long is given up; its pager is killed.
constexpr int kAnswerMs = 60'000;
constexpr int kLookMs = 100;
constexpr uint32_t kTarget = 1;

StoreKey key_of(const CheckpointPlace& place) {
  return place.key_text.empty() ? StoreKey::load(place.key_path)
                                : StoreKey::from_text(place.key_text);
}

PagerFindMessage find_message(const CheckpointPlace& place, const StoreKey& key) {
  PagerFindMessage message;
  message.id = place.id;
  message.store.store = place.store;
  message.store.group = place.name;
  message.store.key.assign(key.bytes().begin(), key.bytes().end());
  message.store.allow_memory_file_systems = place.allow_memory_file_systems;
  if (place.rights) {
    message.store.as_owner = true;
    message.store.uid = place.rights->uid;
    message.store.gid = place.rights->gid;
    message.store.groups.assign(place.rights->groups.begin(), place.rights->groups.end());
  }
  return message;
}

}  // namespace

CheckpointReader::CheckpointReader(const CheckpointPlace& place, std::stop_token stop)
    : stop_(std::move(stop)),
      key_(key_of(place)),
      pager_(PagerProcess::start(place.pager_path)),
      target_(::memfd_create("replpage restore", MFD_CLOEXEC)) {
  if (!target_.valid() || ::ftruncate(target_.get(), kFetchBytesMax) != 0) {
    throw SysError::from_errno("make room for pages of a checkpoint");
  }
  PagerFindMessage wanted = find_message(place, key_);
  ReceivedMessage answer = ask(PagerMessageType::kFind, encode(wanted));
  if (pager_type(answer.type) != PagerMessageType::kFound || answer.descriptors.size() != 1) {
    throw FormatError("the pager answered kFind with something else");
  }
  auto found = decode<PagerFoundMessage>(answer.body);
  id_ = found.id;
  manifest_ = decode<CheckpointManifest>(found.manifest);
  directory_ = std::move(answer.descriptors[0]);
  void* mapped =
      ::mmap(nullptr, kFetchBytesMax, PROT_READ | PROT_WRITE, MAP_SHARED, target_.get(), 0);
  if (mapped == MAP_FAILED) throw SysError::from_errno("map room for pages of a checkpoint");
  room_ = static_cast<uint8_t*>(mapped);
  const int target = target_.get();
  pager_.channel().send(on_wire(PagerMessageType::kSource), PagerSourceMessage{.source = kTarget},
                        {&target, 1});
}

CheckpointReader::~CheckpointReader() {
  if (room_ != nullptr) ::munmap(room_, kFetchBytesMax);
}

ReceivedMessage CheckpointReader::ask(PagerMessageType type, Bytes body,
                                      std::span<const int> descriptors) {
  pager_.channel().send(on_wire(type), std::move(body), descriptors);
  std::optional<ReceivedMessage> answer;
  for (int waited_ms = 0; !answer; waited_ms += kLookMs) {
    if (pager_.channel().closed()) {
      throw StoreError(StoreFailure::kIo, "page store: the pager ended");
    }
    if (waited_ms >= kAnswerMs || stop_.stop_requested()) {
      throw StoreError(StoreFailure::kIo, "page store: it does not answer");
    }
    answer = pager_.channel().receive(kLookMs);
  }
  if (pager_type(answer->type) == PagerMessageType::kFailed) {
    const auto failed = decode<PagerFailedMessage>(answer->body);
    throw StoreError(failed.kind, failed.reason, failed.error);
  }
  return std::move(*answer);
}

void CheckpointReader::fetch_into_target(std::vector<PagerFetchRun> runs) {
  PagerFetchMessage message{.ticket = ++tickets_, .source = kTarget, .runs = std::move(runs)};
  (void)ask(PagerMessageType::kFetch, encode(message));
}

std::span<const uint8_t> CheckpointReader::fetch(std::span<const PageRun> runs) {
  std::vector<PagerFetchRun> wanted;
  uint64_t bytes = 0;
  for (const PageRun& run : runs) {
    wanted.push_back({.location = run.data_offset,
                      .offset = bytes,
                      .pages = static_cast<uint32_t>(run.length / kPageSize)});
    bytes += run.length;
  }
  if (bytes > kFetchBytesMax) throw SysError("fetch pages of a checkpoint", EMSGSIZE);
  fetch_into_target(std::move(wanted));
  return {room_, bytes};
}

CheckpointState CheckpointReader::read_state() {
  const uint64_t total = manifest_.state_bytes;
  Bytes bytes(total);
  constexpr uint64_t kChunks = kFetchBytesMax / kStateChunkBytes;
  for (uint64_t first = 0; first < manifest_.state.size(); first += kChunks) {
    std::vector<PagerFetchRun> runs;
    const uint64_t begin = first * kStateChunkBytes;
    const uint64_t end = std::min(total, begin + kFetchBytesMax);
    for (uint64_t at = begin; at < end; at += kStateChunkBytes) {
      const uint64_t length = std::min(kStateChunkBytes, end - at);
      runs.push_back({.location = manifest_.state[at / kStateChunkBytes],
                      .offset = at - begin,
                      .pages = static_cast<uint32_t>(page_ceil(length) / kPageSize)});
    }
    fetch_into_target(std::move(runs));
    std::memcpy(bytes.data() + begin, room_, end - begin);
  }
  try {
    if (crc32c(bytes) != manifest_.state_crc) throw FormatError("its checksum is wrong");
    auto state = decode<CheckpointState>(bytes);
    check_group_image(state.image);
    if (state.image.epoch != manifest_.epoch) throw FormatError("it is of another epoch");
    check_checkpoint_state(state);
    return state;
  } catch (const FormatError& error) {
    throw StoreError(StoreFailure::kDamaged,
                     "page store: the state of checkpoint " + id_ + ": " + error.what());
  }
}

}  // namespace replpage
