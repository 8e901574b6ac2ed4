#include "core/store/segment_file.h"

#include <fcntl.h>

#include "core/store/store_files.h"

namespace replpage {
namespace {

void check_identity(const SegmentHeader& header, const GenerationName& of, uint32_t number,
                    const std::string& path) {
  if (const auto fault = fault_of(header)) {
    const bool future =
        header.magic == kSegmentMagic && header_intact(header) && header.version > kStoreVersion;
    if (!future) throw StoreDamaged(path, 0, *fault);
    throw StoreError(StoreFailure::kUnusable, "page store: " + path + ": " + *fault);
  }
  if (header.group_id != of.group_id || header.generation != of.generation ||
      header.number != number) {
    throw StoreDamaged(path, 0,
                       "it is segment " + std::to_string(header.number) + " of generation " +
                           std::to_string(header.generation) + " of group " +
                           hex16(header.group_id));
  }
}

}  // namespace

SegmentFileToRead open_segment(int generation, const std::string& path, const GenerationName& of,
                               uint32_t number, const StoreKey* key) {
  const std::string name = segment_file_name(number);
  const std::string full = path + "/" + name;
  constexpr int kFlags = O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC;
  UniqueFd fd(::openat(generation, name.c_str(), kFlags));
  if (!fd.valid() && errno == ENOENT) {
    see_changes(generation);
    fd.reset(::openat(generation, name.c_str(), kFlags));
  }
  if (!fd.valid()) throw_store_error("open", full);
  SegmentHeader header;
  if (read_at(fd.get(), full, &header, sizeof header, 0) != sizeof header) {
    throw StoreDamaged(full, 0, "it ends in the middle of its header");
  }
  check_identity(header, of, number, full);
  return {.fd = std::move(fd),
          .path = full,
          .header = header,
          .cipher = SegmentCipher(header, key, full)};
}

}  // namespace replpage
