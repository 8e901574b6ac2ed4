#include "core/store/segment_reader.h"

#include <fcntl.h>
#include <sys/uio.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <vector>

#include "core/store/record_codec.h"
#include "core/store/segment_file.h"
#include "core/store/store_files.h"

namespace replpage {
namespace {

struct KeptRecord {
  StoreLocation at;  // content_offset 0
  RecordHeader header;
  std::vector<uint8_t> content;
  uint64_t used = 0;
};

struct KeptSegment {
  uint32_t number = 0;
  SegmentFileToRead file;
  uint64_t used = 0;
};

}  // namespace

class SegmentReader::State {
 public:
  State(UniqueFd generation, const ReaderOptions& options)
      : generation_(std::move(generation)),
        path_(options.path + "/" + generation_path(options.of)),
        of_(options.of),
        segments_max_(std::max(1u, options.segments_open_max)),
        records_max_(std::max(1u, options.records_kept)),
        bytes_(64 * 1024) {
    if (options.key == nullptr) return;
    key_ = StoreKey::from_bytes(options.key->bytes());
    prepare_cipher();
  }

  // The record's part from the location on is [content_offset, end). nullptr: it would have to
  // wait.
  const KeptRecord* record(uint64_t location, bool wait) {
    const std::optional<StoreLocation> at = StoreLocation::unpack(location);
    if (!at) throw StoreDamaged(path_, 0, "no record has the location " + hex16(location));
    StoreLocation whole = *at;
    whole.content_offset = 0;
    const KeptRecord* found = kept(whole);
    return found != nullptr ? found : fetch(whole, wait);
  }

  const KeptRecord* record(uint64_t location, int32_t pid, uint64_t address, bool wait) {
    const KeptRecord* found = record(location, wait);
    if (found == nullptr) return nullptr;
    const RecordHeader& header = found->header;
    const uint64_t offset = location & 0xFFFF;
    if (offset >= found->content.size() || header.pid != pid ||
        header.address + offset != address) {
      throw StoreDamaged(path_ + "/" + segment_file_name(found->at.segment),
                         found->at.record_offset,
                         "the record is of process " + std::to_string(header.pid) + " at 0x" +
                             hex16(header.address) + ", not of " + std::to_string(pid) + " at 0x" +
                             hex16(address));
    }
    return found;
  }

  bool read_run(std::span<const PagesAt> wanted) {
    if (wanted.empty()) return true;
    const auto first = StoreLocation::unpack(wanted.front().location);
    const auto last = StoreLocation::unpack(wanted.back().location);
    if (!first || !last || first->segment != last->segment ||
        last->record_offset < first->record_offset) {
      return false;
    }
    SegmentFileToRead& file = opened(first->segment, true)->file;
    const size_t size = last->record_offset - first->record_offset + last->record_kib * 1024;
    if (run_.size() < size) run_.resize(size);
    const size_t got = read_at(file.fd.get(), file.path, run_.data(), size, first->record_offset);
    const std::span<const uint8_t> bytes(run_.data(), got);
    StoreLocation decoded;  // what run_content_ has
    return std::all_of(wanted.begin(), wanted.end(), [&](const PagesAt& pages) {
      const auto at = StoreLocation::unpack(pages.location);
      if (!at || at->segment != first->segment || at->record_offset < first->record_offset ||
          at->record_offset - first->record_offset >= got) {
        return false;
      }
      return decode_part(file, bytes.subspan(at->record_offset - first->record_offset), *at,
                         pages.into, decoded);
    });
  }

  void expect(uint64_t location, uint64_t bytes) {
    const std::optional<StoreLocation> at = StoreLocation::unpack(location);
    if (!at) return;
    const KeptSegment* segment = opened(at->segment, true);
    (void)::posix_fadvise(segment->file.fd.get(), static_cast<off_t>(at->record_offset),
                          static_cast<off_t>(bytes), POSIX_FADV_WILLNEED);
  }

 private:
  // False: it is not what the location says.
  bool decode_part(SegmentFileToRead& file, std::span<const uint8_t> bytes, const StoreLocation& at,
                   std::span<uint8_t> into, StoreLocation& decoded) {
    StoreLocation whole = at;
    whole.content_offset = 0;
    if (whole != decoded) {
      RecordHeader header;
      if (!RecordDecoder::decode_header(bytes, header).empty()) return false;
      if (header.generation != of_.generation || location_of(header) != whole) return false;
      if (at.content_offset == 0 && into.size() == header.pages * kPageSize) {
        return decoder_.decode_content(bytes, file.cipher, header, into).empty();
      }
      decoded = {};
      run_content_.resize(header.pages * kPageSize);
      if (!decoder_.decode_content(bytes, file.cipher, header, run_content_).empty()) return false;
      decoded = whole;
    }
    if (at.content_offset > run_content_.size() ||
        into.size() > run_content_.size() - at.content_offset) {
      return false;
    }
    std::memcpy(into.data(), run_content_.data() + at.content_offset, into.size());
    return true;
  }

  const KeptRecord* kept(const StoreLocation& at) {
    for (KeptRecord& record : records_) {
      if (record.at != at) continue;
      record.used = ++clock_;
      return &record;
    }
    return nullptr;
  }

  const KeptRecord* fetch(const StoreLocation& at, bool wait) {
    try {
      return fetch_once(at, wait);
    } catch (const StoreError& error) {
      // What an NFS server was restarted with, or another has replaced, is opened anew once.
      if (error.error() != ESTALE) throw;
      std::erase_if(segments_, [&](const KeptSegment& s) { return s.number == at.segment; });
      return fetch_once(at, wait);
    }
  }

  const KeptRecord* fetch_once(const StoreLocation& at, bool wait) {
    KeptSegment* segment = opened(at.segment, wait);
    if (segment == nullptr) return nullptr;
    SegmentFileToRead& file = segment->file;
    KeptRecord fresh{.at = at, .header = {}, .content = std::move(spare_), .used = 0};
    std::string fault = read_record(file, fresh, wait);
    // Part of it is not in memory; or it is damaged, which read() will tell.
    if (!fault.empty() && !wait) return nullptr;
    if (!fault.empty()) {
      // What this node remembers of the file may be older than the record.
      ::posix_fadvise(file.fd.get(), at.record_offset, at.record_kib * 1024, POSIX_FADV_DONTNEED);
      see_changes(file.fd.get());
      fault = read_record(file, fresh, wait);
    }
    if (!fault.empty()) throw StoreDamaged(file.path, at.record_offset, fault);
    if (fresh.header.generation != of_.generation || location_of(fresh.header) != at) {
      throw StoreDamaged(file.path, at.record_offset, "the record belongs elsewhere");
    }
    return keep(std::move(fresh));
  }

  // "" or what is wrong.
  std::string read_record(SegmentFileToRead& file, KeptRecord& record, bool wait) {
    const size_t wanted = size_t{record.at.record_kib} * 1024;
    const uint64_t offset = record.at.record_offset;
    const size_t got = wait ? read_at(file.fd.get(), file.path, bytes_.data(), wanted, offset)
                            : read_cached(file, wanted, offset);
    return decoder_.decode({bytes_.data(), got}, file.cipher, record.header, record.content);
  }

  size_t read_cached(const SegmentFileToRead& file, size_t wanted, uint64_t offset) {
    const iovec part{bytes_.data(), wanted};
    const ssize_t got = ::preadv2(file.fd.get(), &part, 1, static_cast<off_t>(offset), RWF_NOWAIT);
    return got < 0 ? 0 : static_cast<size_t>(got);
  }

  KeptSegment* opened(uint32_t number, bool wait) {
    for (KeptSegment& segment : segments_) {
      if (segment.number != number) continue;
      segment.used = ++clock_;
      return &segment;
    }
    if (!wait) return nullptr;
    const StoreKey* key = key_ ? &*key_ : nullptr;
    KeptSegment fresh{.number = number,
                      .file = open_segment(generation_.get(), path_, of_, number, key),
                      .used = ++clock_};
    if (segments_.size() < segments_max_) return &segments_.emplace_back(std::move(fresh));
    KeptSegment& oldest = least_used(segments_);
    oldest = std::move(fresh);
    return &oldest;
  }

  const KeptRecord* keep(KeptRecord fresh) {
    fresh.used = ++clock_;
    if (records_.size() < records_max_) return &records_.emplace_back(std::move(fresh));
    KeptRecord& oldest = least_used(records_);
    spare_ = std::move(oldest.content);
    oldest = std::move(fresh);
    return &oldest;
  }

  template <class T>
  static T& least_used(std::vector<T>& list) {
    return *std::min_element(list.begin(), list.end(),
                             [](const T& a, const T& b) { return a.used < b.used; });
  }

  UniqueFd generation_;
  std::string path_;
  GenerationName of_;
  std::optional<StoreKey> key_;
  size_t segments_max_;
  size_t records_max_;
  std::vector<uint8_t> bytes_;  // of one record as it is on disk
  std::vector<uint8_t> spare_;
  std::vector<uint8_t> run_;          // of several records as they are on disk
  std::vector<uint8_t> run_content_;  // of the last of them that was wanted in parts
  std::vector<KeptSegment> segments_;
  std::vector<KeptRecord> records_;
  RecordDecoder decoder_;
  uint64_t clock_ = 0;
};

namespace {

RecordView view_of(const KeptRecord& record) {
  return {.pid = record.header.pid,
          .address = record.header.address,
          .epoch = record.header.epoch,
          .content = record.content};
}

bool copy_from(const KeptRecord* record, uint64_t location, std::span<uint8_t> into) {
  if (record == nullptr) return false;
  const uint64_t offset = location & 0xFFFF;
  if (offset > record->content.size() || into.size() > record->content.size() - offset) {
    throw StoreError(StoreFailure::kDamaged,
                     "page store: more pages are asked for than the record has");
  }
  std::memcpy(into.data(), record->content.data() + offset, into.size());
  return true;
}

}  // namespace

SegmentReader::SegmentReader(UniqueFd generation, const ReaderOptions& options)
    : state_(std::make_unique<State>(std::move(generation), options)) {}
SegmentReader::~SegmentReader() = default;

void SegmentReader::read(uint64_t location, int32_t pid, uint64_t address,
                         std::span<uint8_t> into) {
  (void)copy_from(state_->record(location, pid, address, true), location, into);
}

bool SegmentReader::try_read(uint64_t location, int32_t pid, uint64_t address,
                             std::span<uint8_t> into) {
  return copy_from(state_->record(location, pid, address, false), location, into);
}

void SegmentReader::read(uint64_t location, std::span<uint8_t> into) {
  (void)copy_from(state_->record(location, true), location, into);
}

bool SegmentReader::try_read(uint64_t location, std::span<uint8_t> into) {
  return copy_from(state_->record(location, false), location, into);
}

RecordView SegmentReader::record(uint64_t location, int32_t pid, uint64_t address) {
  return view_of(*state_->record(location, pid, address, true));
}

bool SegmentReader::read_run(std::span<const PagesAt> wanted) { return state_->read_run(wanted); }

void SegmentReader::expect(uint64_t location, uint64_t bytes) { state_->expect(location, bytes); }

std::optional<RecordView> SegmentReader::try_record(uint64_t location, int32_t pid,
                                                    uint64_t address) {
  const KeptRecord* record = state_->record(location, pid, address, false);
  if (record == nullptr) return std::nullopt;
  return view_of(*record);
}

}  // namespace replpage
