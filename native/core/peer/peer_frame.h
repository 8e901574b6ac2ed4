// What goes over a connection that carries a group's pages: docs/formats/peer-pages.md.
//
// The node of the primary connects and is greeted. Its first frame is kOpen, the answer kAccepted;
// then staged bytes and the tracer's messages go one way, the keeper's messages the other. Bytes
// that a message names come before it, at the same place in the staging area of either side.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/base/archive.h"
#include "core/base/clock_offsets.h"
#include "core/channel/messages.h"

namespace replpage {

inline constexpr uint32_t kPeerMagic = 0x44505052;  // "RPPD"
inline constexpr uint16_t kPeerVersion = 1;
// Staged bytes in one frame.
inline constexpr uint32_t kPeerChunkBytes = 256 * 1024;
inline constexpr uint32_t kPeerBodyBytesMax = kPeerChunkBytes + 64;
// Before the other side is known.
inline constexpr uint32_t kPeerStrangerBytesMax = 4096;

enum class PeerFrameType : uint16_t {
  kOpen = 1,      // OpenMessage; from the primary's node
  kAccepted = 2,  // AcceptedMessage
  kRefused = 3,   // RefusedMessage; nothing comes after it
  kBytes = 4,     // uint64_t offset in the staging area, then what lies there
  kMessage = 5,   // uint16_t MessageType, then its body
  kAlive = 6,     // empty: nothing else was to be said for a while
  kGreeting = 7,  // GreetingMessage; from the replica's node, before anything else
};

struct PeerFrameHeader {
  uint32_t magic = kPeerMagic;
  uint16_t version = kPeerVersion;
  PeerFrameType type{};
  uint32_t body_bytes = 0;
  uint32_t body_crc = 0;    // CRC32C
  uint64_t sequence = 0;    // of this side's frames, from 1
  uint32_t header_crc = 0;  // CRC32C of the bytes before it
  uint32_t reserved = 0;    // zero
};
static_assert(sizeof(PeerFrameHeader) == 32);

// Clocks as they were when it was sent: whoever reads its own afterwards knows how far they are
// ahead, and errs on the side where a program's clocks leap and do not step back.
struct GreetingMessage {
  ClockReadings clocks;
  template <class A>
  void visit(A& a) {
    a(clocks);
  }
};

struct OpenMessage {
  std::string token;  // that the replica's node gave out, once
  std::string name;   // of the group
  uint64_t generation = 0;
  uint64_t staging_bytes = 0, spill_bytes_max = 0;  // see ConfigureMessage
  PrimaryClocks clocks;                             // of the primary
  template <class A>
  void visit(A& a) {
    a(token, name, generation, staging_bytes, spill_bytes_max, clocks);
  }
};

struct AcceptedMessage {
  std::vector<std::string> notes;  // of the keeper
  template <class A>
  void visit(A& a) {
    a(notes);
  }
};

struct RefusedMessage {
  std::string why;
  template <class A>
  void visit(A& a) {
    a(why);
  }
};

// A message of keeper_link.h and of the keeper, on its way. Descriptors do not travel.
struct CarriedMessage {
  MessageType type{};
  Bytes body;
};

Bytes carry(const CarriedMessage& message);
// Throws FormatError.
CarriedMessage carried(std::span<const uint8_t> body);

[[nodiscard]] uint32_t header_crc(const PeerFrameHeader& header);
// Throws FormatError for a header that is damaged, foreign, out of order or too long.
void check_header(const PeerFrameHeader& header, uint64_t sequence, uint32_t body_bytes_max);

}  // namespace replpage
