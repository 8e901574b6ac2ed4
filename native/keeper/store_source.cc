#include "keeper/store_source.h"

#include <fcntl.h>

#include <algorithm>
#include <chrono>
#include <utility>

#include "core/base/clock.h"
#include "core/base/sys_error.h"

namespace replpage {
namespace {

constexpr uint64_t kWindowBytes = 512 * 1024;
// What is read and not wanted costs less than another read.
constexpr uint64_t kGapBytesMax = 64 * 1024;
constexpr uint64_t kRunBytesMax = 512 * 1024;
constexpr uint64_t kFirstPauseUs = 20'000;
constexpr uint64_t kLongestPauseUs = 1'000'000;
// A name that a client of NFS has not heard of may be there all the same, for so long.
constexpr uint64_t kGoneUs = 30'000'000;

StoreKey key_of(const StoreMessage& store) {
  if (store.key.empty()) return StoreKey::random();
  if (store.key.size() != kStoreKeyBytes) throw FormatError("key of the page store");
  return StoreKey::from_bytes(std::span<const uint8_t, kStoreKeyBytes>(store.key));
}

uint64_t window_of(const StoreLocation& at) {
  return uint64_t{at.segment} << 32 | at.record_offset / kWindowBytes;
}

}  // namespace

// A reader for the time of one read. The last one that was used is most likely to have the record.
class StoreSource::Lease {
 public:
  explicit Lease(StoreSource& source) : source_(source) {
    {
      const std::lock_guard lock(source_.mutex_);
      if (!source_.idle_.empty()) {
        reader_ = std::move(source_.idle_.back());
        source_.idle_.pop_back();
      }
    }
    if (!reader_) reader_ = source_.make_reader();
  }
  ~Lease() {
    const std::lock_guard lock(source_.mutex_);
    source_.idle_.push_back(std::move(reader_));
  }
  Lease(const Lease&) = delete;
  Lease& operator=(const Lease&) = delete;
  SegmentReader* operator->() const { return reader_.get(); }

 private:
  StoreSource& source_;
  std::unique_ptr<SegmentReader> reader_;
};

StoreSource::StoreSource(UniqueFd directory, const StoreMessage& store)
    : directory_(std::move(directory)),
      key_(key_of(store)),
      path_(store.path),
      encrypted_(!store.key.empty()),
      of_{.group = store.name, .group_id = store.group_id, .generation = store.generation} {}

std::unique_ptr<SegmentReader> StoreSource::make_reader() const {
  UniqueFd directory(::fcntl(directory_.get(), F_DUPFD_CLOEXEC, 0));
  if (!directory.valid()) throw StoreError(StoreFailure::kIo, "page store: no descriptor is left");
  ReaderOptions options;
  options.path = path_;
  options.of = of_;
  options.key = encrypted_ ? &key_ : nullptr;
  return std::make_unique<SegmentReader>(std::move(directory), options);
}

void StoreSource::read(uint64_t position, std::span<uint8_t> buffer) {
  const uint64_t began = now_us();
  for (uint64_t pause_us = kFirstPauseUs;; pause_us = std::min(2 * pause_us, kLongestPauseUs)) {
    try {
      const Lease reader(*this);
      reader->read(position, buffer);
      return note_trouble("");
    } catch (const StoreError& error) {
      const bool gone = error.kind() == StoreFailure::kGone && now_us() - began > kGoneUs;
      if (gone || error.kind() == StoreFailure::kDamaged ||
          error.kind() == StoreFailure::kWrongKey) {
        throw PageDamaged(error.what());
      }
      note_trouble(error.what());
    }
    if (!pause(pause_us)) throw SysError("read cold pages", ECANCELED);
  }
}

// By runs that one read can fetch.
bool StoreSource::read_many(std::span<const PagesWanted> wanted) {
  try {
    const Lease reader(*this);
    std::vector<PagesAt> run;
    std::optional<StoreLocation> first, last;
    for (const PagesWanted& pages : wanted) {
      const std::optional<StoreLocation> at = StoreLocation::unpack(pages.position);
      if (!at) return false;
      const bool goes_on = first && at->segment == first->segment &&
                           at->record_offset >= last->record_offset &&
                           at->record_offset - last->record_offset <= kGapBytesMax &&
                           at->record_offset - first->record_offset <= kRunBytesMax;
      if (!goes_on) {
        if (!reader->read_run(run)) return false;
        run.clear();
        first = at;
      }
      last = at;
      run.push_back({.location = pages.position, .into = pages.into});
    }
    if (!reader->read_run(run)) return false;
    note_trouble("");
    return true;
  } catch (const StoreError&) {
    return false;  // read() finds out
  }
}

// By windows, this one and the next: enough for the device to be busy all the time, and not so much
// that a fault would have to wait long for its turn.
void StoreSource::expect(uint64_t position) {
  const std::optional<StoreLocation> at = StoreLocation::unpack(position);
  if (!at) return;
  for (uint64_t window = window_of(*at), last = window + 1; window <= last; ++window) {
    if (!note_expected(window)) continue;
    StoreLocation start = *at;
    start.content_offset = 0;
    const uint64_t number = static_cast<uint32_t>(window);
    if (number * kWindowBytes >= kSegmentBytesLimit) return;
    start.record_offset = static_cast<uint32_t>(std::max<uint64_t>(
        number * kWindowBytes, kRecordAlignment));  // before that is the segment's header
    try {
      const Lease reader(*this);
      reader->expect(start.pack(), kWindowBytes);
    } catch (const StoreError&) {  // read() finds out
    }
  }
}

bool StoreSource::may_expect(uint64_t position) {
  const std::optional<StoreLocation> at = StoreLocation::unpack(position);
  const std::lock_guard lock(mutex_);
  return at && !is_expected(window_of(*at) + 1);
}

// The caller holds the lock.
bool StoreSource::is_expected(uint64_t window) const {
  const uint64_t mark = window + 1;  // 0: none
  return std::find(expected_.begin(), expected_.end(), mark) != expected_.end();
}

// False: it was asked for already.
bool StoreSource::note_expected(uint64_t window) {
  const std::lock_guard lock(mutex_);
  if (is_expected(window)) return false;
  expected_[expected_next_++ % expected_.size()] = window + 1;
  return true;
}

bool StoreSource::try_read(uint64_t position, std::span<uint8_t> buffer) {
  try {
    const Lease reader(*this);
    return reader->try_read(position, buffer);
  } catch (const StoreError&) {
    return false;  // read() finds out
  }
}

void StoreSource::give_up() {
  const std::lock_guard lock(mutex_);
  given_up_ = true;
  given_up_changed_.notify_all();
}

std::string StoreSource::trouble() const {
  const std::lock_guard lock(mutex_);
  return trouble_;
}

void StoreSource::note_trouble(const std::string& what) {
  const std::lock_guard lock(mutex_);
  trouble_ = what;
}

bool StoreSource::pause(uint64_t us) {
  std::unique_lock lock(mutex_);
  return !given_up_changed_.wait_for(lock, std::chrono::microseconds(us),
                                     [this] { return given_up_; });
}

}  // namespace replpage
