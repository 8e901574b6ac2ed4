#include "core/store/segment_writer.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <map>
#include <optional>
#include <vector>

#include "core/store/checkpoint_directory.h"
#include "core/store/record_codec.h"

namespace replpage {
namespace {

// Written at once: several records.
constexpr size_t kFlushBytes = 1 << 20;
// A server may answer a create twice, and one that died leaves files behind.
constexpr int kNumbersTriedMax = 1024;

struct OpenSegment {
  UniqueFd fd;
  std::string path;
  uint32_t number = 0;
  SegmentCipher cipher;
  uint64_t written = 0;  // bytes given to the kernel
  uint64_t synced = 0;   // of them durable
  uint32_t attempt = 0;
  bool fresh = true;  // its name is not durable yet
};

}  // namespace

class SegmentWriter::State {
 public:
  explicit State(const WriterOptions& options)
      : options_(options),
        store_(open_writable(options.store)),
        path_(options.store.path + "/" + generation_path(options.of)),
        generation_(make_generation(store_.get(), options.store.path, options.of, options.writer,
                                    options.again)),
        next_(std::max(1u, options.first_segment)) {
    if (options.key != nullptr) key_ = StoreKey::from_bytes(options.key->bytes());
    options_.key = nullptr;
    options_.segment_bytes_max = std::min(options.segment_bytes_max, kSegmentBytesLimit);
    for (const SegmentFile& segment : list_segments(generation_.get(), path_)) {
      note_closed(segment.number, segment.bytes);
      next_ = std::max(next_, segment.number + 1);
    }
    count_others();
    count_checkpoints();
    had_checkpoint_ = in_checkpoints_ != 0;
  }

  StoreLocation append(int32_t pid, uint64_t address, uint64_t epoch,
                       std::span<const uint8_t> pages) {
    if (pages.empty() || pages.size() % kPageSize != 0 || address % kPageSize != 0 ||
        pages.size() > kRecordPagesMax * kPageSize) {
      throw std::invalid_argument("page store: a record has 1 to 8 whole pages");
    }
    const uint64_t most = record_ceil(kRecordOverhead + pages.size());
    if (bytes_on_disk() + most > options_.bytes_max) {
      // Somebody may have removed some.
      try {
        count_checkpoints();
      } catch (const StoreError&) {
        discard();
        throw;
      }
      if (bytes_on_disk() + most > options_.bytes_max) refuse_more();
    }
    if (current_ && current_->written + buffer_.size() + most > options_.segment_bytes_max) {
      retire_current();
    }
    if (!current_) begin_segment();
    RecordHeader header{
        .pid = pid,
        .address = address,
        .epoch = epoch,
        .generation = options_.of.generation,
        .segment = current_->number,
        .position = static_cast<uint32_t>((current_->written + buffer_.size()) / kRecordAlignment),
        .attempt = current_->attempt};
    encoder_.encode(header, pages, options_.compress, current_->cipher, buffer_);
    if (buffer_.size() >= kFlushBytes) flush();
    return location_of(header);
  }

  void sync() {
    flush();
    bool new_names = false;
    for (OpenSegment* segment : unsynced()) {
      if (segment->written != segment->synced && ::fdatasync(segment->fd.get()) != 0) {
        fail_sync("fdatasync", segment->path);
      }
      new_names = new_names || segment->fresh;
    }
    if (new_names && ::fsync(generation_.get()) != 0) fail_sync("fsync", path_);
    for (OpenSegment* segment : unsynced()) {
      segment->synced = segment->written;
      segment->fresh = false;
    }
    for (const OpenSegment& segment : full_) note_closed(segment.number, segment.synced);
    full_.clear();
  }

  void discard() noexcept {
    buffer_.clear();
    for (OpenSegment& segment : full_) close_at_synced(segment);
    full_.clear();
    if (!current_) return;
    OpenSegment& segment = *current_;
    // Also without a write: what was sealed for these offsets may have been seen elsewhere.
    ++segment.attempt;
    if (!segment.fresh && (segment.written == segment.synced || cut_to_synced(segment))) return;
    close_at_synced(segment);
    current_.reset();
  }

  void drop_segment(uint32_t number) {
    if (current_ && current_->number == number) {
      sync();
      retire_current();
      full_.clear();
    }
    remove_segment(generation_.get(), path_, number);
    forget_closed(number);
    if (in_checkpoints_ != 0 || had_checkpoint_) count_checkpoints();
  }

  void count_checkpoints() {
    had_checkpoint_ = true;
    in_checkpoints_ = bytes_of_checkpoints(store_.get(), options_.store.path, options_.of.group);
  }

  void remove_generation(uint64_t generation) {
    GenerationName other = options_.of;
    if (generation == other.generation) {
      throw std::invalid_argument("page store: a writer's own generation is not removed by it");
    }
    other.generation = generation;
    replpage::remove_generation(store_.get(), options_.store.path, other);
    count_others();
  }

  [[nodiscard]] uint64_t bytes_on_disk() const {
    uint64_t bytes = others_ + in_checkpoints_ + buffer_.size() + closed_bytes_;
    for (const OpenSegment& segment : full_) bytes += segment.written;
    return bytes + (current_ ? current_->written : 0);
  }

  [[nodiscard]] uint64_t segments() const {
    return other_segments_ + closed_.size() + full_.size() + (current_ ? 1 : 0);
  }

  [[nodiscard]] int directory() const { return generation_.get(); }
  [[nodiscard]] uint32_t next_segment() const { return next_; }

 private:
  static UniqueFd open_writable(StoreOptions options) {
    options.writing = true;
    return open_store(options);
  }

  [[noreturn]] void refuse_more() {
    discard();
    const std::string kept = in_checkpoints_ == 0 ? ""
                                                  : ", " + std::to_string(in_checkpoints_) +
                                                        " of them kept by checkpoints alone";
    throw StoreFull("page store: " + path_ + ": the limit of " +
                    std::to_string(options_.bytes_max) + " bytes is reached" + kept);
  }

  std::vector<OpenSegment*> unsynced() {
    std::vector<OpenSegment*> list;
    for (OpenSegment& segment : full_) list.push_back(&segment);
    if (current_) list.push_back(&*current_);
    return list;
  }

  void begin_segment() {
    for (int tried = 0; tried < kNumbersTriedMax && next_ <= kSegmentNumberMax; ++tried) {
      const uint32_t number = next_++;
      const std::string name = segment_file_name(number);
      UniqueFd fd(::openat(generation_.get(), name.c_str(),
                           O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600));
      if (!fd.valid() && errno == EEXIST) continue;
      if (!fd.valid()) fail("make", path_ + "/" + name);
      SegmentHeader header{
          .group_id = options_.of.group_id, .generation = options_.of.generation, .number = number};
      const StoreKey* key = key_ ? &*key_ : nullptr;
      salt_segment(header, key);
      seal_header(header);
      const std::string path = path_ + "/" + name;
      current_.emplace(OpenSegment{.fd = std::move(fd),
                                   .path = path,
                                   .number = number,
                                   .cipher = SegmentCipher(header, key, path)});
      buffer_.resize(kFirstRecord);
      std::memcpy(buffer_.data(), &header, sizeof header);
      return;
    }
    errno = EEXIST;
    fail("find a number for a segment in", path_);
  }

  void retire_current() {
    flush();
    full_.push_back(std::move(*current_));
    current_.reset();
  }

  void flush() {
    if (buffer_.empty()) return;
    OpenSegment& segment = *current_;
    for (size_t done = 0; done < buffer_.size();) {
      const ssize_t got = ::pwrite(segment.fd.get(), buffer_.data() + done, buffer_.size() - done,
                                   static_cast<off_t>(segment.written + done));
      if (got > 0) {
        done += static_cast<size_t>(got);
      } else if (got == 0 || errno != EINTR) {
        if (got == 0) errno = EIO;
        // What arrived of it is cut off with the rest.
        segment.written += done + 1;
        fail("write", segment.path);
      }
    }
    segment.written += buffer_.size();
    buffer_.clear();
  }

  // `path` by value: what it was of may be closed here.
  [[noreturn]] void fail(const std::string& operation, std::string path) {
    const int error = errno;
    const bool full = error == ENOSPC || error == EDQUOT || error == EFBIG;
    if (full) {
      discard();
    } else {
      give_up();
    }
    errno = error;
    throw_store_error(operation, path);
  }

  // The kernel tells of a lost write once: what follows in these files is not to be trusted.
  [[noreturn]] void fail_sync(const std::string& operation, std::string path) {
    const int error = errno;
    give_up();
    errno = error;
    throw_store_error(operation, path);
  }

  void give_up() {
    discard();
    if (!current_) return;
    close_at_synced(*current_);
    current_.reset();
  }

  static bool cut_to_synced(OpenSegment& segment) {
    if (::ftruncate(segment.fd.get(), static_cast<off_t>(segment.synced)) != 0) return false;
    segment.written = segment.synced;
    return true;
  }

  void close_at_synced(OpenSegment& segment) noexcept {
    // One that was never durable has nothing that counts. Whether it goes or not is no matter:
    // nothing refers to what lies behind `synced`.
    const bool removed =
        segment.fresh &&
        ::unlinkat(generation_.get(), segment_file_name(segment.number).c_str(), 0) == 0;
    if (removed) return;
    if (segment.written != segment.synced) (void)cut_to_synced(segment);
    note_closed(segment.number, segment.written);
  }

  void count_others() {
    others_ = 0;
    other_segments_ = 0;
    GenerationName other = options_.of;
    for (const uint64_t generation :
         list_generations(store_.get(), options_.store.path, options_.of)) {
      if (generation == options_.of.generation) continue;
      other.generation = generation;
      const std::string path = options_.store.path + "/" + generation_path(other);
      try {
        const UniqueFd folder = open_generation(store_.get(), options_.store.path, other);
        for (const SegmentFile& segment : list_segments(folder.get(), path)) {
          others_ += segment.bytes;
          ++other_segments_;
        }
      } catch (const StoreError& error) {
        if (error.kind() != StoreFailure::kGone) throw;
      }
    }
  }

  void note_closed(uint32_t number, uint64_t bytes) {
    forget_closed(number);
    closed_[number] = bytes;
    closed_bytes_ += bytes;
  }

  void forget_closed(uint32_t number) {
    const auto found = closed_.find(number);
    if (found == closed_.end()) return;
    closed_bytes_ -= found->second;
    closed_.erase(found);
  }

  WriterOptions options_;
  UniqueFd store_;
  std::string path_;
  UniqueFd generation_;
  uint32_t next_;
  std::optional<StoreKey> key_;
  std::optional<OpenSegment> current_;
  std::vector<OpenSegment> full_;        // since the last sync()
  std::map<uint32_t, uint64_t> closed_;  // segment -> bytes
  uint64_t closed_bytes_ = 0;
  std::vector<uint8_t> buffer_;  // of current_, behind what is written
  RecordEncoder encoder_;
  uint64_t others_ = 0;  // bytes of other generations
  uint64_t other_segments_ = 0;
  uint64_t in_checkpoints_ = 0;  // bytes that checkpoints of the group's name alone keep
  bool had_checkpoint_ = false;  // there may be some by now
};

SegmentWriter::SegmentWriter(const WriterOptions& options)
    : state_(std::make_unique<State>(options)) {}
SegmentWriter::~SegmentWriter() = default;

StoreLocation SegmentWriter::append(int32_t pid, uint64_t address, uint64_t epoch,
                                    std::span<const uint8_t> pages) {
  return state_->append(pid, address, epoch, pages);
}

void SegmentWriter::sync() { state_->sync(); }
void SegmentWriter::discard() { state_->discard(); }
void SegmentWriter::drop_segment(uint32_t number) { state_->drop_segment(number); }
void SegmentWriter::remove_generation(uint64_t generation) {
  state_->remove_generation(generation);
}
void SegmentWriter::count_checkpoints() { state_->count_checkpoints(); }
uint64_t SegmentWriter::bytes_on_disk() const { return state_->bytes_on_disk(); }
uint64_t SegmentWriter::segments() const { return state_->segments(); }
uint32_t SegmentWriter::next_segment() const { return state_->next_segment(); }
int SegmentWriter::directory() const { return state_->directory(); }

}  // namespace replpage
