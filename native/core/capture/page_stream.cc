#include "core/capture/page_stream.h"

#include <algorithm>
#include <utility>

#include "core/base/clock.h"
#include "core/base/crc32c.h"
#include "core/base/page.h"
#include "core/base/sys_error.h"
#include "core/capture/keeper_lost.h"

namespace replpage {
namespace {

// How long the tracer may be deaf for stops of the primary while it waits for the keeper.
constexpr int kDeafMs = 1;

}  // namespace

PageStream::PageStream(StagingArea& staging, Channel& channel, uint64_t epoch,
                       std::function<void()> between)
    : staging_(staging), channel_(channel), epoch_(epoch), between_(std::move(between)) {
  if (staging.used_bytes() != 0 || staging.memory_bytes() < kChunks * kChunkBytes) {
    throw SysError("start the first copy in a staging area in use or too small", EINVAL);
  }
  runs_.reserve(kRunsPerChunk);
}

PageStream::~PageStream() {
  staging_.at_ = std::max(staging_.at_, kChunks * kChunkBytes);
  try {
    staging_.reset();
  } catch (const SysError&) {  // only a spill file can fail here, and none was used
  }
}

std::span<uint8_t> PageStream::reserve(uint64_t bytes) {
  if (bytes > kStagingChunkBytes) throw SysError("reserve a staging chunk", EINVAL);
  if (filled_ + bytes > kDataBytes || runs_.size() >= kRunsPerChunk / 2) flush();
  return {staging_.memory_ + chunk_ * kChunkBytes + filled_, bytes};
}

uint64_t PageStream::keep(uint64_t used) {
  const uint64_t offset = chunk_ * kChunkBytes + filled_;
  filled_ += page_ceil(used);
  bytes_sent_ += used;
  return offset;
}

void PageStream::add(const PageRun& run) {
  if (!runs_.empty()) {
    PageRun& last = runs_.back();
    if (last.pid == run.pid && last.object == run.object && last.kind == run.kind &&
        last.address + last.length == run.address &&
        (run.kind != PageRunKind::kData || last.data_offset + last.length == run.data_offset)) {
      last.length += run.length;
      if (run.kind == PageRunKind::kData) covered_ += run.length;
      return;
    }
  }
  if (runs_.size() == kRunsPerChunk) throw SysError("list a chunk's page runs", E2BIG);
  runs_.push_back(run);
  if (run.kind == PageRunKind::kData) covered_ += run.length;
  // Runs without data need no reservation, so the list may grow long here. The chunk must not leave
  // before all of its pages are listed.
  if (runs_.size() >= kRunsPerChunk / 2 && covered_ >= filled_) flush();
}

void PageStream::flush() {
  if (runs_.empty() && filled_ == 0) return;
  PageRunList list{.runs = std::move(runs_)};
  runs_ = {};
  runs_.reserve(kRunsPerChunk);
  const Bytes encoded = encode(list);
  const uint64_t offset = chunk_ * kChunkBytes + kDataBytes;
  std::copy(encoded.begin(), encoded.end(), staging_.memory_ + offset);
  try {
    channel_.send(MessageType::kPages,
                  PagesMessage{.epoch = epoch_, .runs = {offset, encoded.size(), crc32c(encoded)}});
  } catch (const SysError& error) {
    throw KeeperLost(error.what());
  }
  ++in_flight_;
  chunk_ = (chunk_ + 1) % kChunks;
  filled_ = 0;
  covered_ = 0;
  if (between_) between_();
  if (in_flight_ == kChunks) wait_answer();
}

void PageStream::wait_answer() {
  const uint64_t deadline = now_ns() + kAnswerMs * 1'000'000ull;
  for (;;) {
    std::optional<ReceivedMessage> answer = channel_.receive(between_ ? kDeafMs : kAnswerMs);
    if (answer && answer->type == MessageType::kPagesDone) {
      --in_flight_;
      return;
    }
    if (answer && answer->type == MessageType::kFailed) {
      throw KeeperLost(decode<FailedMessage>(answer->body).reason);
    }
    if (answer) throw FormatError("keeper answered kPages with something else");
    if (channel_.closed()) throw KeeperLost("the keeper has ended");
    if (now_ns() > deadline) throw KeeperLost("the keeper does not answer");
    if (between_) between_();
  }
}

void PageStream::finish() {
  flush();
  while (in_flight_ > 0) wait_answer();
}

}  // namespace replpage
