#include "core/store/record_codec.h"

#include <lz4.h>

#include <cstring>

namespace replpage {

void RecordEncoder::encode(RecordHeader& header, std::span<const uint8_t> content, bool compress,
                           SegmentCipher& cipher, std::vector<uint8_t>& out) {
  std::span<const uint8_t> packed = content;
  header.encoding = RecordEncoding::kRaw;
  if (compress) {
    packed_.resize(kRecordPagesLimit * kPageSize);
    // Less than one unit of alignment saves nothing.
    const int size = LZ4_compress_default(
        reinterpret_cast<const char*>(content.data()), reinterpret_cast<char*>(packed_.data()),
        static_cast<int>(content.size()), static_cast<int>(content.size() - kRecordAlignment));
    if (size > 0) {
      packed = {packed_.data(), static_cast<size_t>(size)};
      header.encoding = RecordEncoding::kLz4;
    }
  }
  header.pages = static_cast<uint8_t>(content.size() / kPageSize);
  header.stored_bytes = static_cast<uint32_t>(packed.size());
  seal_header(header);
  const size_t at = out.size();
  out.resize(at + record_ceil(record_bytes(header)));
  uint8_t* payload = out.data() + at + sizeof header;
  std::memcpy(out.data() + at, &header, sizeof header);
  const RecordSeal seal = cipher.seal(header, packed, payload);
  std::memcpy(payload + packed.size(), seal.data(), seal.size());
}

std::string RecordDecoder::decode(std::span<const uint8_t> bytes, SegmentCipher& cipher,
                                  RecordHeader& header, std::vector<uint8_t>& content) {
  if (std::string fault = decode_header(bytes, header); !fault.empty()) return fault;
  content.resize(header.pages * kPageSize);
  return decode_content(bytes, cipher, header, content);
}

std::string RecordDecoder::decode_header(std::span<const uint8_t> bytes, RecordHeader& header) {
  if (bytes.size() < sizeof header) return "the segment ends in the middle of a record";
  std::memcpy(&header, bytes.data(), sizeof header);
  if (const auto fault = fault_of(header)) return *fault;
  if (bytes.size() < record_bytes(header)) return "the segment ends in the middle of a record";
  return "";
}

std::string RecordDecoder::decode_content(std::span<const uint8_t> bytes, SegmentCipher& cipher,
                                          const RecordHeader& header, std::span<uint8_t> content) {
  const std::span<const uint8_t> payload = bytes.subspan(sizeof header, header.stored_bytes);
  RecordSeal seal{};
  std::memcpy(seal.data(), payload.data() + payload.size(), seal.size());
  const bool raw = header.encoding == RecordEncoding::kRaw;
  if (!raw) packed_.resize(kRecordPagesLimit * kPageSize);
  if (!cipher.open(header, payload, seal, raw ? content.data() : packed_.data())) {
    return "the record's content is damaged, or another's";
  }
  if (raw) return "";
  const int size = LZ4_decompress_safe(
      reinterpret_cast<const char*>(packed_.data()), reinterpret_cast<char*>(content.data()),
      static_cast<int>(payload.size()), static_cast<int>(content.size()));
  return size == static_cast<int>(content.size()) ? "" : "the record cannot be unpacked";
}

}  // namespace replpage
