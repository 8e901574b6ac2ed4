// An open segment: its identity has been checked, its key derived.
#pragma once

#include <string>

#include "core/base/unique_fd.h"
#include "core/store/segment_cipher.h"
#include "core/store/store_directory.h"

namespace replpage {

struct SegmentFileToRead {
  UniqueFd fd;
  std::string path;
  SegmentHeader header;
  SegmentCipher cipher;
};

// Throws StoreError: kGone, kIo, kWrongKey, kUnusable (a version of the future), or StoreDamaged,
// also when it is a segment of another group, generation or number.
SegmentFileToRead open_segment(int generation, const std::string& path, const GenerationName& of,
                               uint32_t number, const StoreKey* key);

}  // namespace replpage
