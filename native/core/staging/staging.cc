#include "core/staging/staging.h"

#include <fcntl.h>
#include <linux/falloc.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "core/base/crc32c.h"
#include "core/base/page.h"
#include "core/base/procfs.h"
#include "core/base/sys_error.h"

namespace replpage {
namespace {

// Kept for the pause: what 50 ms copy at some 2 GB/s.
constexpr uint64_t kPauseBytesMax = 96ull << 20;

uint64_t page_up(uint64_t offset) { return page_ceil(offset); }

// A file without a name; some file systems lack O_TMPFILE.
UniqueFd make_spill(const std::string& directory) {
  UniqueFd fd(::open(directory.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
  if (fd.valid()) return fd;
  if (errno != EOPNOTSUPP && errno != EISDIR) {
    throw SysError::from_errno("open a spill file in", on_path(directory));
  }
  std::string path = directory + "/spill.XXXXXX";
  fd.reset(::mkostemp(path.data(), O_CLOEXEC));
  if (!fd.valid()) throw SysError::from_errno("open a spill file in", on_path(directory));
  ::unlink(path.c_str());
  return fd;
}

}  // namespace

StagingArea::StagingArea(const StagingOptions& options)
    : memory_bytes_(options.memory_bytes),
      spill_bytes_max_(options.spill_bytes_max),
      check_wanted_(options.check_wanted) {
  if (memory_bytes_ > kStagingBytesMax || memory_bytes_ < 4 * kStagingChunkBytes ||
      memory_bytes_ % kPageSize != 0) {
    throw SysError("staging area of " + std::to_string(memory_bytes_) + " bytes", EINVAL);
  }
  memory_fd_.reset(::memfd_create("replpage-staging", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!memory_fd_.valid()) throw SysError::from_errno("memfd_create for staging");
  // Sealed in size, so that no mapping of it can ever raise SIGBUS.
  if (::ftruncate(memory_fd_.get(), static_cast<off_t>(memory_bytes_)) != 0 ||
      ::fcntl(memory_fd_.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) {
    throw SysError::from_errno("set the size of the staging memory");
  }
  if (spill_bytes_max_ != 0) {
    try {
      spill_fd_ = make_spill(options.spill_directory);
    } catch (const SysError& error) {  // a full or read-only disk: memory alone has to do
      spill_bytes_max_ = 0;
      spill_problem_ = error.what();
    }
  }
  void* at =
      ::mmap(nullptr, memory_bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, memory_fd_.get(), 0);
  if (at == MAP_FAILED) throw SysError::from_errno("mmap of the staging memory");
  memory_ = static_cast<uint8_t*>(at);
}

StagingArea::~StagingArea() { ::munmap(memory_, memory_bytes_); }

// Where `bytes` more go: never across the border between memory and spill file. Without a spill
// file there is nothing to keep a part of the memory free with.
uint64_t StagingArea::place(uint64_t bytes) const {
  const bool all = hurried_ || spill_bytes_max_ == 0;
  const uint64_t kept = all ? 0 : std::min(kPauseBytesMax, memory_bytes_ / 2);
  if (memory_used_ + bytes + kept <= memory_bytes_) return memory_used_;
  if (bytes > spill_bytes_max_ - spill_used_) {
    throw SysError("stage " + std::to_string(bytes) + " more bytes", ENOSPC);
  }
  return memory_bytes_ + spill_used_;
}

void StagingArea::take(uint64_t offset, uint64_t bytes) {
  if (offset < memory_bytes_) {
    memory_used_ = page_up(offset + bytes);
  } else {
    spill_used_ = page_up(offset - memory_bytes_ + bytes);
  }
}

std::span<uint8_t> StagingArea::reserve(uint64_t bytes) {
  if (bytes > kStagingChunkBytes) throw SysError("reserve a staging chunk", EINVAL);
  reserved_at_ = place(bytes);
  reserved_bytes_ = bytes;
  if (reserved_at_ < memory_bytes_) return {memory_ + reserved_at_, bytes};
  if (spill_buffer_.size() < bytes) spill_buffer_.resize(kStagingChunkBytes);
  return {spill_buffer_.data(), bytes};
}

std::span<uint8_t> StagingArea::reserve_in_memory(uint64_t bytes) {
  if (bytes > kStagingChunkBytes) throw SysError("reserve a staging chunk", EINVAL);
  if (memory_used_ + bytes > memory_bytes_) return {};
  reserved_at_ = memory_used_;
  reserved_bytes_ = bytes;
  return {memory_ + reserved_at_, bytes};
}

uint64_t StagingArea::keep(uint64_t used) {
  if (used > reserved_bytes_) throw SysError("keep more than was reserved", EINVAL);
  if (reserved_at_ >= memory_bytes_) write_spill(reserved_at_, {spill_buffer_.data(), used});
  take(reserved_at_, used);
  reserved_bytes_ = 0;
  return reserved_at_;
}

void StagingArea::write_spill(uint64_t offset, std::span<const uint8_t> bytes) {
  auto at = static_cast<off_t>(offset - memory_bytes_);
  while (!bytes.empty()) {
    if (check_wanted_ && !hurried_) check_wanted_();
    const size_t piece = std::min<size_t>(bytes.size(), kSpillPieceBytes);
    const ssize_t put = ::pwrite(spill_fd_.get(), bytes.data(), piece, at);
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) throw SysError::from_errno("write the spill file");
    bytes = bytes.subspan(static_cast<size_t>(put));
    at += put;
  }
}

void StagingArea::add(const PageRun& run) {
  if (!runs_.empty() && joins(runs_.back(), run)) {
    runs_.back().length += run.length;
  } else {
    runs_.push_back(run);
  }
}

bool StagingArea::joins(const PageRun& last, const PageRun& next) const {
  if (last.pid != next.pid || last.object != next.object || last.kind != next.kind) return false;
  if (last.address + last.length != next.address) return false;
  if (next.kind == PageRunKind::kCold) return false;  // each has a record of its own
  if (next.kind != PageRunKind::kData) return true;
  return last.data_offset + last.length == next.data_offset && next.data_offset != memory_bytes_;
}

StagedBytes StagingArea::put_encoded(std::span<const uint8_t> bytes) {
  const uint64_t offset = place(bytes.size());
  if (offset < memory_bytes_) {
    std::memcpy(memory_ + offset, bytes.data(), bytes.size());
  } else {
    write_spill(offset, bytes);
  }
  take(offset, bytes.size());
  return {.offset = offset, .length = bytes.size(), .crc = crc32c(bytes)};
}

uint64_t StagingArea::populated_bytes() const {
  struct stat file {};
  constexpr uint64_t kBlockBytes = 512;  // stat(2)
  return ::fstat(memory_fd_.get(), &file) == 0 ? static_cast<uint64_t>(file.st_blocks) * kBlockBytes
                                               : 0;
}

void StagingArea::punch_memory(uint64_t start, uint64_t end) {
  if (start >= end) return;
  // Failure costs memory until the next reset, nothing else.
  (void)::fallocate(memory_fd_.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                    static_cast<off_t>(start), static_cast<off_t>(end - start));
}

void StagingArea::release() {
  reset();
  punch_memory(0, warm_memory_.bytes());
  warm_memory_.forget();
  if (warm_spill_.bytes() > 0) shorten_spill(0);
  warm_spill_.forget();
}

void StagingArea::shorten_spill(uint64_t bytes) {
  if (::ftruncate(spill_fd_.get(), static_cast<off_t>(bytes)) != 0) {
    throw SysError::from_errno("shorten the spill file");
  }
}

void StagingArea::reset() {
  const uint64_t spilled = warm_spill_.note(spill_used_);
  if (spilled > warm_spill_.bytes()) shorten_spill(warm_spill_.bytes());
  const uint64_t most = warm_spill_.bytes() > 0 ? memory_bytes_ : kWarmMemoryMax;
  const uint64_t populated = warm_memory_.note(memory_used_, most);
  punch_memory(warm_memory_.bytes(), populated);
  if (spill_used_ > 0) spill_buffer_ = {};
  hurried_ = false;
  memory_used_ = 0;
  spill_used_ = 0;
  reserved_bytes_ = 0;
  runs_.clear();
}

}  // namespace replpage
