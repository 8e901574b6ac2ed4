#include "core/peer/peer_frame.h"

#include <cstddef>
#include <cstring>

#include "core/base/crc32c.h"

namespace replpage {

Bytes carry(const CarriedMessage& message) {
  const auto type = static_cast<uint16_t>(message.type);
  Bytes body(sizeof type + message.body.size());
  std::memcpy(body.data(), &type, sizeof type);
  if (!message.body.empty()) {
    std::memcpy(body.data() + sizeof type, message.body.data(), message.body.size());
  }
  return body;
}

CarriedMessage carried(std::span<const uint8_t> body) {
  uint16_t type = 0;
  if (body.size() < sizeof type) throw FormatError("a carried message is shorter than its type");
  std::memcpy(&type, body.data(), sizeof type);
  body = body.subspan(sizeof type);
  return {.type = static_cast<MessageType>(type), .body = Bytes(body.begin(), body.end())};
}

uint32_t header_crc(const PeerFrameHeader& header) {
  return crc32c({reinterpret_cast<const uint8_t*>(&header), offsetof(PeerFrameHeader, header_crc)});
}

void check_header(const PeerFrameHeader& header, uint64_t sequence, uint32_t body_bytes_max) {
  if (header.magic != kPeerMagic) throw FormatError("what came is no frame");
  if (header.header_crc != header_crc(header)) throw FormatError("a frame's header is damaged");
  if (header.version != kPeerVersion) {
    throw FormatError("a frame has version " + std::to_string(header.version) + ", expected " +
                      std::to_string(kPeerVersion));
  }
  if (header.reserved != 0) throw FormatError("a frame has a reserved field that is not zero");
  if (header.sequence != sequence) throw FormatError("a frame is out of order");
  const auto type = static_cast<uint16_t>(header.type);
  if (type < static_cast<uint16_t>(PeerFrameType::kOpen) ||
      type > static_cast<uint16_t>(PeerFrameType::kGreeting)) {
    throw FormatError("a frame is of an unknown type");
  }
  if (header.body_bytes > body_bytes_max) throw FormatError("a frame is longer than allowed");
}

}  // namespace replpage
