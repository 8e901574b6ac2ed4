// Seals and opens the records of one segment.
#pragma once

#include <memory>
#include <span>

#include "core/store/store_format.h"
#include "core/store/store_key.h"

namespace replpage {

// The library's first use takes 1.4 ms, later ones 8 us: to be called before anybody waits.
void prepare_cipher();

// A random salt, the flags and the key check of a new segment. `key` null: not encrypted.
void salt_segment(SegmentHeader& header, const StoreKey* key);

// RFC 5869 with SHA-256, for at most 32 bytes.
void hkdf_sha256(std::span<const uint8_t> key, std::span<const uint8_t> salt,
                 std::span<const uint8_t> info, std::span<uint8_t> into);

// With encryption: AES-256-GCM under a key of this segment alone, HKDF(store key, salt); the nonce
// is the record's position and attempt, which no segment ever has twice. Both headers are
// authenticated with the payload. Without: a CRC32C over the same. Not for several threads at once.
class SegmentCipher {
 public:
  // `header` is whole. Throws StoreError(kWrongKey), naming `path`, when the segment was written
  // with another key, is encrypted and there is none, or is not and there is one: whoever can write
  // to the store must not be able to slip content in that way.
  SegmentCipher(const SegmentHeader& header, const StoreKey* key, const std::string& path);
  ~SegmentCipher();
  SegmentCipher(SegmentCipher&&) noexcept;
  SegmentCipher& operator=(SegmentCipher&&) noexcept;

  // Writes plain.size() bytes to `payload`, which may not overlap `plain`.
  RecordSeal seal(const RecordHeader& header, std::span<const uint8_t> plain, uint8_t* payload);

  // Writes payload.size() bytes to `plain`, which may not overlap. False: it is not what was sealed
  // so, and nothing of `plain` may be used.
  [[nodiscard]] bool open(const RecordHeader& header, std::span<const uint8_t> payload,
                          const RecordSeal& seal, uint8_t* plain);

 private:
  class State;
  std::unique_ptr<State> state_;
};

}  // namespace replpage
