// Looks through a whole segment: for rebuilding an index, and for checking a store.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "core/store/store_directory.h"
#include "core/store/store_key.h"
#include "core/store/store_location.h"

namespace replpage {

struct ScannedRecord {
  StoreLocation location;
  int32_t pid = 0;
  uint64_t address = 0;
  uint64_t epoch = 0;
  std::span<const uint8_t> content;  // valid during the visit
};

struct ScanDamage {
  uint64_t offset = 0;
  std::string cause;
};

struct SegmentScan {
  uint64_t records = 0;
  uint64_t pages = 0;
  uint64_t stored_bytes = 0;        // of sound records, headers included
  uint64_t tail_offset = 0;         // where the sound part ends
  bool torn_tail = false;           // what follows the last sound record is not whole: no damage
  std::vector<ScanDamage> damages;  // at most kScanDamagesMax, in front of sound records
};

inline constexpr size_t kScanDamagesMax = 64;

// Visits every sound record in file order; goes on after a damaged one. Throws StoreError when the
// segment cannot be read at all: kGone, kIo, kWrongKey, or StoreDamaged for its header.
SegmentScan scan_segment(int generation, const std::string& path, const GenerationName& of,
                         uint32_t number, const StoreKey* key,
                         const std::function<void(const ScannedRecord&)>& visit);

}  // namespace replpage
