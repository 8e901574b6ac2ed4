// One record: pages to bytes and back.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "core/store/segment_cipher.h"
#include "core/store/store_format.h"

namespace replpage {

// Both are not for several threads at once, and keep room for their work.
class RecordEncoder {
 public:
  // Appends header, payload and seal to `out`, and zeros up to the next record. Fills the header's
  // encoding, pages, stored_bytes and checksum. Content that does not shrink is kept as it is.
  void encode(RecordHeader& header, std::span<const uint8_t> content, bool compress,
              SegmentCipher& cipher, std::vector<uint8_t>& out);

 private:
  std::vector<uint8_t> packed_;
};

class RecordDecoder {
 public:
  // `bytes` begins with the record and may go on behind it. Fills `content` with header.pages
  // pages. Returns what is wrong with it, "" when nothing is; `content` is then all that was
  // sealed.
  [[nodiscard]] std::string decode(std::span<const uint8_t> bytes, SegmentCipher& cipher,
                                   RecordHeader& header, std::vector<uint8_t>& content);

  // The two halves of it: what follows the header is looked at by the second alone, whose `content`
  // has room for just header.pages pages.
  [[nodiscard]] static std::string decode_header(std::span<const uint8_t> bytes,
                                                 RecordHeader& header);
  [[nodiscard]] std::string decode_content(std::span<const uint8_t> bytes, SegmentCipher& cipher,
                                           const RecordHeader& header, std::span<uint8_t> content);

 private:
  std::vector<uint8_t> packed_;
};

}  // namespace replpage
