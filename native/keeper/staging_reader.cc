#include "keeper/staging_reader.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "core/base/crc32c.h"
#include "core/base/sys_error.h"
#include "core/staging/staging.h"

namespace replpage {
namespace {

// Address space for the spill file is taken in whole; more than this is no sensible limit.
constexpr uint64_t kSpillBytesMax = 1ull << 42;

uint64_t size_of(int fd) {
  struct stat facts {};
  if (::fstat(fd, &facts) != 0) throw SysError::from_errno("fstat of the staging area");
  return static_cast<uint64_t>(facts.st_size);
}

// Replica processes are cloned from the keeper and have no use for these.
const uint8_t* map_whole(int fd, uint64_t bytes) {
  void* at = ::mmap(nullptr, bytes, PROT_READ, MAP_SHARED | MAP_NORESERVE, fd, 0);
  if (at == MAP_FAILED) throw SysError::from_errno("mmap of the staging area");
  (void)::madvise(at, bytes, MADV_DONTFORK);
  return static_cast<const uint8_t*>(at);
}

}  // namespace

StagingReader::StagingReader(UniqueFd memory, uint64_t memory_bytes, UniqueFd spill,
                             uint64_t spill_bytes_max)
    : memory_fd_(std::move(memory)),
      spill_fd_(std::move(spill)),
      memory_bytes_(memory_bytes),
      spill_bytes_max_(spill_bytes_max) {
  if (memory_bytes == 0 || memory_bytes > kStagingBytesMax || spill_bytes_max > kSpillBytesMax) {
    throw FormatError("staging area has a size beyond its limits");
  }
  const int seals = ::fcntl(memory_fd_.get(), F_GET_SEALS);
  if (seals < 0 || (seals & F_SEAL_SHRINK) == 0 || size_of(memory_fd_.get()) != memory_bytes) {
    throw FormatError("staging memory is not sealed at its size");
  }
  memory_ = map_whole(memory_fd_.get(), memory_bytes);
  if (spill_bytes_max != 0) spill_ = map_whole(spill_fd_.get(), spill_bytes_max);
}

StagingReader::~StagingReader() {
  ::munmap(const_cast<uint8_t*>(memory_), memory_bytes_);
  if (spill_ != nullptr) ::munmap(const_cast<uint8_t*>(spill_), spill_bytes_max_);
}

std::span<const uint8_t> StagingReader::data(uint64_t offset, uint64_t length) {
  if (offset < memory_bytes_) {
    if (length > memory_bytes_ - offset) throw FormatError("staged bytes cross the spill border");
    return {memory_ + offset, length};
  }
  return spilled(offset - memory_bytes_, length);
}

std::span<const uint8_t> StagingReader::spilled(uint64_t at, uint64_t length) {
  if (at > spill_bytes_max_ || length > spill_bytes_max_ - at) {
    throw FormatError("staged bytes lie outside the staging area");
  }
  if (length == 0) return {};
  // Beyond the end of the file the mapping would raise SIGBUS.
  if (size_of(spill_fd_.get()) < at + length) throw FormatError("spill file is truncated");
  return {spill_ + at, length};
}

std::span<const uint8_t> StagingReader::checked(const StagedBytes& where) {
  const std::span<const uint8_t> bytes = data(where.offset, where.length);
  if (crc32c(bytes) != where.crc) throw FormatError("staged structure is damaged");
  return bytes;
}

}  // namespace replpage
