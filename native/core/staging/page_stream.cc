#include "core/staging/page_stream.h"

#include <algorithm>
#include <utility>

#include "core/base/crc32c.h"
#include "core/base/page.h"
#include "core/base/sys_error.h"

namespace replpage {

PageStream::PageStream(StagingArea& staging, Keeper keeper)
    : staging_(staging), keeper_(std::move(keeper)) {
  if (staging.used_bytes() != 0 || staging.memory_bytes() < kRingBytes) {
    throw SysError("start the first copy in a staging area in use or too small", EINVAL);
  }
  runs_.reserve(kRunsPerChunk);
  // Only saves page faults: a kernel without huge pages for memory files refuses it.
  (void)::madvise(staging_.memory_, kPagesBytes, MADV_HUGEPAGE);
}

PageStream::~PageStream() {
  (void)::madvise(staging_.memory_, kPagesBytes, MADV_NOHUGEPAGE);
  staging_.memory_used_ = std::max(staging_.memory_used_, kRingBytes);
  try {
    staging_.reset();
  } catch (const SysError&) {  // only a spill file can fail here, and none was used
  }
}

std::span<uint8_t> PageStream::reserve(uint64_t bytes) {
  if (bytes > kStagingChunkBytes) throw SysError("reserve a staging chunk", EINVAL);
  if (filled_ + bytes > kChunkBytes || runs_.size() >= kRunsPerChunk / 2) flush();
  return {staging_.memory_ + chunk_ * kChunkBytes + filled_, bytes};
}

uint64_t PageStream::keep(uint64_t used) {
  const uint64_t offset = chunk_ * kChunkBytes + filled_;
  filled_ += page_ceil(used);
  bytes_sent_ += used;
  return offset;
}

void PageStream::add(const PageRun& run) {
  if (run.kind == PageRunKind::kData) covered_ += run.length;
  if (!runs_.empty() && staging_.joins(runs_.back(), run)) {
    runs_.back().length += run.length;
    return;
  }
  if (runs_.size() == kRunsPerChunk) throw SysError("list a chunk's page runs", E2BIG);
  runs_.push_back(run);
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
  const uint64_t offset = kPagesBytes + chunk_ * kListBytes;
  std::copy(encoded.begin(), encoded.end(), staging_.memory_ + offset);
  keeper_.send_pages({.offset = offset, .length = encoded.size(), .crc = crc32c(encoded)});
  if (keeper_.sent) keeper_.sent(list.runs);
  ++in_flight_;
  chunk_ = (chunk_ + 1) % kChunks;
  filled_ = 0;
  covered_ = 0;
  if (in_flight_ == kChunks) wait_one();
}

void PageStream::wait_one() {
  keeper_.wait_pages_done();
  --in_flight_;
}

void PageStream::finish() {
  flush();
  while (in_flight_ > 0) wait_one();
}

}  // namespace replpage
