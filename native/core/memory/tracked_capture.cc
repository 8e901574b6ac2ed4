#include "core/memory/tracked_capture.h"

#include <sys/mman.h>

#include <algorithm>
#include <utility>

#include "core/base/crc32c.h"
#include "core/base/procfs.h"
#include "core/base/sys_error.h"
#include "core/memory/last_copy_plan.h"
#include "core/memory/map_line.h"
#include "core/memory/memory_thread.h"

namespace replpage {
namespace {

// At a time.
constexpr uint64_t kComparedPages = 512;

PageRanges private_ranges(std::span<const MappingImage> mappings) {
  PageRanges ranges;
  for (const MappingImage& mapping : mappings) {
    if (holds_private_pages(mapping.kind)) append_range(ranges, mapping.range());
  }
  return ranges;
}

}  // namespace

CopyRound TrackedCapture::copy_changed(const std::vector<MappingImage>& mappings, PageSink& sink) {
  const bool everything = std::exchange(copy_all_, true);
  CopyRound round = copy_view(mappings, everything, sink);
  gone_ = round.process_gone;
  return round;
}

CopyRound TrackedCapture::copy_view(const std::vector<MappingImage>& mappings, bool everything,
                                    PageSink& sink) {
  CopyRound round;
  MemoryView view;
  tracker_->look(mappings, view);
  const PageRanges mapped = private_ranges(mappings);
  round.mapped_bytes = total_bytes(mapped);
  if (everything) {
    view.appeared = mapped;
    view.written = view.present;
  }
  add_owed(view);
  const PageRanges vanished = intersect_ranges(
      subtract_ranges(unite_ranges(subtract_ranges(present_, view.present), view.absent),
                      view.appeared),
      mapped);
  if (memory_lost(view.present, vanished, {})) {
    round.process_gone = true;
    return round;
  }
  add_absent(view.appeared, mappings, sink, round);
  add_absent(vanished, mappings, sink, round);
  if (!copy_pages(view.written, mappings, sink, round)) {
    round.process_gone = true;
    return round;
  }
  present_ = std::move(view.present);
  owed_appeared_.clear();
  owed_written_.clear();
  owed_absent_.clear();
  return round;
}

// The look has begun anew, so what it found is owed until it has been copied. What vanished in vain
// may count as present by now, without being written: memory is dense with a few holes in it.
void TrackedCapture::add_owed(MemoryView& view) {
  view.appeared = unite_ranges(view.appeared, owed_appeared_);
  view.absent = subtract_ranges(
      unite_ranges(view.absent, unite_ranges(owed_absent_, owed_written_)), view.present);
  view.written = unite_ranges(
      view.written, intersect_ranges(unite_ranges(owed_absent_, owed_written_), view.present));
  owed_appeared_ = view.appeared;
  owed_written_ = view.written;
  owed_absent_ = view.absent;
  copy_all_ = false;
}

void TrackedCapture::copy_again(std::span<const PageRange> written,
                                std::span<const PageRange> absent) {
  owed_written_ = unite_ranges(owed_written_, written);
  owed_absent_ = unite_ranges(owed_absent_, absent);
}

// Of what was there at the last copy, at most so much.
PageRanges TrackedCapture::part_of_present(uint64_t start, uint64_t bytes_max) const {
  PageRanges part;
  for (const PageRange& range : present_) {
    const uint64_t from = std::max(range.start, start);
    if (from >= range.end) continue;
    const uint64_t length = std::min(range.end - from, bytes_max);
    part.push_back({from, from + length});
    bytes_max -= length;
    if (bytes_max == 0) break;
  }
  return part;
}

MemoryCapture::OwedPart TrackedCapture::copy_again_from(uint64_t start, uint64_t bytes_max) {
  const PageRanges part = part_of_present(start, bytes_max);
  owed_written_ = unite_ranges(owed_written_, part);
  const uint64_t bytes = total_bytes(part);
  return {.next = bytes == bytes_max ? part.back().end : UINT64_MAX, .bytes = bytes};
}

Comparison TrackedCapture::compare(const std::vector<MappingImage>& mappings, uint64_t start,
                                   uint64_t bytes_max, const ReplicaHashes& theirs) {
  const PageRanges part = part_of_present(start, bytes_max);
  Comparison result;
  result.next = total_bytes(part) == bytes_max ? part.back().end : UINT64_MAX;
  PageRanges wrong;
  for (const PageRange& range : part) {
    wrong = unite_ranges(wrong, differing(range, theirs, result.pages));
  }
  if (wrong.empty()) return result;
  // Written since the last copy, so that it may well differ.
  MemoryView view;
  tracker_->peek(mappings, view);
  wrong = intersect_ranges(subtract_ranges(wrong, view.written), view.present);
  wrong = subtract_ranges(subtract_ranges(wrong, view.appeared), owed_written_);
  result.wrong = subtract_ranges(wrong, owed_absent_);
  return result;
}

PageRanges TrackedCapture::differing(const PageRange& range, const ReplicaHashes& theirs,
                                     uint64_t& compared) {
  PageRanges found;
  std::vector<uint8_t> room(kComparedPages * kPageSize);
  for (uint64_t at = range.start; at < range.end;) {
    const PageRange piece{at, std::min(range.end, at + room.size())};
    at = piece.end;
    const std::vector<uint32_t> hashes = theirs(piece);
    if (hashes.size() != piece.pages()) continue;
    PageRanges unreadable;
    reader_.set_hidden(false);
    reader_.read({&piece, 1}, std::span(room).first(piece.bytes()), unreadable);
    for (uint64_t page = 0; page < hashes.size(); ++page) {
      const PageRange one{piece.start + page * kPageSize, piece.start + (page + 1) * kPageSize};
      if (!intersect_ranges({&one, 1}, unreadable).empty()) continue;
      ++compared;
      const auto bytes = std::span(room).subspan(page * kPageSize, kPageSize);
      if (crc32c(bytes) != hashes[page]) append_range(found, one);
    }
  }
  return found;
}

uint64_t TrackedCapture::count_dirty(const std::vector<MappingImage>& mappings, uint64_t limit) {
  // What is owed of a process that has ended will never be copied. Were it counted, a group whose
  // child has just ended would look as if it wrote more than can be copied, until it forks again.
  if (gone_) return 0;
  const uint64_t owed = total_bytes(owed_written_) / kPageSize;
  return owed >= limit ? owed : owed + tracker_->count(mappings, limit - owed);
}

void TrackedCapture::look_last(const std::vector<MappingImage>& mappings) {
  MemoryView view;
  tracker_->peek(mappings, view);
  last_look_ = std::move(view);
}

std::vector<LazyRange> TrackedCapture::copy_last(const std::vector<MappingImage>& mappings,
                                                 PageSink& sink, uint64_t copy_pages_max) {
  CopyRound round;
  if (!last_look_) look_last(mappings);
  MemoryView view = *std::exchange(last_look_, std::nullopt);
  const PageRanges mapped = private_ranges(mappings);
  const bool everything = std::exchange(copy_all_, true);
  add_owed(view);
  PageRanges gone = everything ? mapped : subtract_ranges(present_, view.present);
  gone = intersect_ranges(unite_ranges(gone, view.absent), mapped);
  const LastCopyPlan plan =
      plan_last_copy(mappings, everything ? view.present : view.written, copy_pages_max);
  const bool lost = memory_lost(view.present, everything ? PageRanges() : gone, plan.lazy);
  if (!lost) add_absent(subtract_ranges(gone, plan.lazy), mappings, sink, round);
  if (lost || !copy_pages(plan.copied, mappings, sink, round)) {
    throw SysError("read the last memory", ESRCH, on_pid(host_pid_));
  }
  std::vector<LazyRange> lazy;
  lazy.reserve(plan.lazy.size());
  for (const PageRange& range : plan.lazy) lazy.push_back({group_pid_, range.start, range.end});
  return lazy;
}

bool TrackedCapture::memory_lost(const PageRanges& present, const PageRanges& vanished,
                                 const PageRanges& lazy) const {
  using Probe = ProcessPageReader::Probe;
  if (!present.empty()) {
    const Probe probe = reader_.probe(present.front().start);
    if (probe == Probe::kNoAddressSpace) return true;
  } else if (!present_.empty() && !memory_thread(host_pid_)) {
    return true;
  }
  // A hole of a healthy process reads as zero or as the file. After the OOM reaper it cannot be
  // read at all (check_stable_address_space in mm/memory.c), but its mapping is still there.
  const auto reaped = [this](const PageRange& hole) {
    return reader_.probe(hole.start) != Probe::kReadable && is_mapped(hole.start);
  };
  return std::any_of(lazy.begin(), lazy.end(), reaped) ||
         (!vanished.empty() && reaped(vanished.back()));
}

void TrackedCapture::add_absent(std::span<const PageRange> ranges,
                                std::span<const MappingImage> mappings, PageSink& sink,
                                CopyRound& round) const {
  if (ranges.empty()) return;
  for (const MappingImage& mapping : mappings) {
    if (!holds_private_pages(mapping.kind)) continue;
    while (!ranges.empty() && ranges.front().end <= mapping.start) ranges = ranges.subspan(1);
    for (const PageRange& range : ranges) {
      if (range.start >= mapping.end) break;
      const PageRange whole = mapping.range();
      for (const PageRange& part : intersect_ranges({&whole, 1}, {&range, 1})) {
        copier_.add_absent(part, sink, round);
      }
    }
  }
}

bool TrackedCapture::copy_pages(std::span<const PageRange> ranges,
                                std::span<const MappingImage> mappings, PageSink& sink,
                                CopyRound& round) {
  PageRanges hidden;  // process_vm_readv respects PROT_NONE, /proc/PID/mem does not
  for (const MappingImage& mapping : mappings) {
    const bool readable = (mapping.prot & PROT_READ) != 0;
    if (holds_private_pages(mapping.kind) && !readable) append_range(hidden, mapping.range());
  }
  reader_.set_hidden(false);
  copier_.copy(subtract_ranges(ranges, hidden), reader_, sink, round);
  reader_.set_hidden(true);
  copier_.copy(intersect_ranges(ranges, hidden), reader_, sink, round);
  for (const PageRange& range : copier_.take_unreadable()) {
    // While the process runs, a page may vanish between look and copy. That shows at the next look.
    if (reader_.probe(range.start) != ProcessPageReader::Probe::kReadable &&
        is_mapped(range.start)) {
      return false;
    }
  }
  return true;
}

bool TrackedCapture::is_mapped(uint64_t address) const {
  const auto tid = memory_thread(host_pid_);
  const auto text = tid ? read_proc(thread_file(host_pid_, *tid, "maps")) : std::nullopt;
  if (!text) return true;  // gone altogether: nothing of it can be trusted
  for (size_t at = 0; at < text->size();) {
    const size_t end = std::min(text->find('\n', at), text->size());
    const auto line = parse_map_line(std::string_view(*text).substr(at, end - at));
    if (line && address >= line->start && address < line->end) return true;
    at = end + 1;
  }
  return false;
}

}  // namespace replpage
