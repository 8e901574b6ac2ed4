#include "core/access/idle_bitmap.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>

#include "core/base/procfs.h"
#include "core/base/sys_error.h"

namespace replpage {
namespace {

constexpr uint64_t kWordBits = 64;
// A call costs more than some words in which there is nothing to do.
constexpr uint64_t kGapWords = 4;
constexpr uint64_t kWordsMax = 8192;  // of one call

off_t offset_of(uint64_t word) { return static_cast<off_t>(word * sizeof(uint64_t)); }

}  // namespace

IdleBitmap::IdleBitmap(const std::string& path) : path_(path), file_(open_path(path, O_RDWR)) {}

IdleBitmap::Span IdleBitmap::first_span(std::span<const uint64_t> frames) {
  Span span{frames[0] / kWordBits, frames[0] / kWordBits + 1, 1};
  while (span.frames < frames.size()) {
    const uint64_t word = frames[span.frames] / kWordBits;
    if (word >= span.last + kGapWords || word >= span.first + kWordsMax) break;
    span.last = std::max(span.last, word + 1);
    ++span.frames;
  }
  return span;
}

std::vector<uint8_t> IdleBitmap::read(std::span<const uint64_t> frames) {
  std::vector<uint8_t> idle;
  idle.reserve(frames.size());
  while (!frames.empty()) {
    const Span span = first_span(frames);
    words_.assign(span.last - span.first, 0);
    const ssize_t got = ::pread(file_.get(), words_.data(), words_.size() * sizeof(uint64_t),
                                offset_of(span.first));
    if (got < 0) throw SysError::from_errno("read", on_path(path_));
    for (const uint64_t frame : frames.first(span.frames)) {
      const uint64_t word = words_[frame / kWordBits - span.first];
      idle.push_back(static_cast<uint8_t>(word >> frame % kWordBits & 1));
    }
    frames = frames.subspan(span.frames);
  }
  return idle;
}

void IdleBitmap::set(std::span<const uint64_t> frames) {
  while (!frames.empty()) {
    const Span span = first_span(frames);
    words_.assign(span.last - span.first, 0);
    for (const uint64_t frame : frames.first(span.frames)) {
      words_[frame / kWordBits - span.first] |= uint64_t{1} << frame % kWordBits;
    }
    write(words_, span.first);
    frames = frames.subspan(span.frames);
  }
}

void IdleBitmap::write(std::span<const uint64_t> words, uint64_t first) {
  const ssize_t put = ::pwrite(file_.get(), words.data(), words.size_bytes(), offset_of(first));
  if (put < 0 && errno != ENXIO) throw SysError::from_errno("write", on_path(path_));
}

}  // namespace replpage
