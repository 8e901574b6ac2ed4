#include "core/memory/page_copier.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "core/memory/zero_page.h"

namespace replpage {
namespace {

// One read: large enough that its fixed cost vanishes, small enough that the zero test afterwards
// finds the pages in the cache.
constexpr uint64_t kBatchBytes = 1u << 20;

}  // namespace

void PageCopier::copy(std::span<const PageRange> ranges, PageReader& reader, PageSink& sink,
                      CopyRound& round) {
  const uint64_t bytes_max = std::min(kBatchBytes, page_floor(sink.chunk_bytes_max()));
  for (const PageRange& range : ranges) {
    for (uint64_t at = range.start; at < range.end;) {
      const uint64_t bytes = std::min(range.end - at, bytes_max - batch_bytes_);
      batch_.push_back({at, at + bytes});
      batch_bytes_ += bytes;
      at += bytes;
      if (batch_bytes_ == bytes_max) copy_batch(reader, sink, round);
    }
  }
  if (batch_bytes_ != 0) copy_batch(reader, sink, round);
}

void PageCopier::add_absent(PageRange range, PageSink& sink, CopyRound& round) const {
  sink.add({.pid = group_pid_,
            .object = object_,
            .kind = PageRunKind::kAbsent,
            .address = range.start,
            .length = range.bytes(),
            .data_offset = 0});
  round.absent_pages += range.pages();
}

PageRanges PageCopier::take_unreadable() { return std::exchange(unreadable_, {}); }

void PageCopier::copy_batch(PageReader& reader, PageSink& sink, CopyRound& round) {
  struct Reset {  // reader and sink may throw
    PageCopier& copier;
    ~Reset() {
      copier.batch_.clear();
      copier.batch_bytes_ = 0;
      copier.batch_unreadable_.clear();
    }
  } reset{*this};
  const std::span<uint8_t> room = sink.reserve(batch_bytes_).first(batch_bytes_);
  reader.read(batch_, room, batch_unreadable_);
  emit(room, sink, round);
}

// Turns the room's pages into runs; the data pages move together at its front.
void PageCopier::emit(std::span<uint8_t> room, PageSink& sink, CopyRound& round) {
  runs_.clear();
  uint8_t* page = room.data();
  size_t used = 0;
  size_t lost = 0;
  for (const PageRange& range : batch_) {
    for (uint64_t address = range.start; address < range.end; address += kPageSize) {
      const uint8_t* content = page;
      page += kPageSize;
      while (lost < batch_unreadable_.size() && batch_unreadable_[lost].end <= address) ++lost;
      if (lost < batch_unreadable_.size() && batch_unreadable_[lost].contains(address)) continue;
      if (is_zero_page(content)) {
        add_run(PageRunKind::kZero, address);
        ++round.zero_pages;
        continue;
      }
      if (room.data() + used != content) std::memcpy(room.data() + used, content, kPageSize);
      used += kPageSize;
      add_run(PageRunKind::kData, address);
      ++round.data_pages;
    }
  }
  uint64_t offset = used != 0 ? sink.keep(used) : 0;
  for (PageRun& run : runs_) {
    if (run.kind == PageRunKind::kData) {
      run.data_offset = offset;
      offset += run.length;
    }
    sink.add(run);
  }
  unreadable_.insert(unreadable_.end(), batch_unreadable_.begin(), batch_unreadable_.end());
}

// Lengthens the last run, or begins one. Data of neighbours lies together in the room too.
void PageCopier::add_run(PageRunKind kind, uint64_t address) {
  if (!runs_.empty()) {
    PageRun& last = runs_.back();
    if (last.kind == kind && last.address + last.length == address) {
      last.length += kPageSize;
      return;
    }
  }
  runs_.push_back({.pid = group_pid_,
                   .object = object_,
                   .kind = kind,
                   .address = address,
                   .length = kPageSize,
                   .data_offset = 0});
}

}  // namespace replpage
