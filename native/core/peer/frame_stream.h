// Frames over a TlsStream: queued to be sent, and put together from what comes. Never blocks.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <optional>
#include <span>

#include "core/peer/peer_frame.h"
#include "core/peer/tls_stream.h"

namespace replpage {

struct PeerFrame {
  PeerFrameType type{};
  Bytes body;  // but of kBytes, whose data lie where `place` said
  uint64_t offset = 0, length = 0;
};

class FrameStream {
 public:
  // Where staged bytes that come are put; it stays valid until the frame was returned. Throws
  // FormatError for a place that there is not.
  using Place = std::function<std::span<uint8_t>(uint64_t offset, uint64_t length)>;

  explicit FrameStream(TlsStream stream);

  // From now on frames may be as long as those of a known node, and kBytes may come.
  void trust(Place place);

  void send(PeerFrameType type, Bytes body);
  template <class T>
  void send_encoded(PeerFrameType type, T message) {
    send(type, encode(message));
  }
  // kBytes. `data` is borrowed until flush() returns true.
  void send_bytes(uint64_t offset, std::span<const uint8_t> data);

  // Sends what the socket takes; true: nothing is left. Throws PeerError.
  bool flush();

  // The next frame that is complete; nullopt: none for now. Throws PeerError when the connection is
  // over, FormatError on damage.
  std::optional<PeerFrame> receive();

  // Something may be received although poll(2) does not say so.
  [[nodiscard]] bool has_pending() const { return stream_.has_pending(); }
  [[nodiscard]] int fd() const { return stream_.fd(); }
  [[nodiscard]] const NodeIdentity& peer() const { return stream_.peer(); }
  // When anything came last, by now_us().
  [[nodiscard]] uint64_t heard_us() const { return heard_us_; }
  [[nodiscard]] uint64_t sent_us() const { return sent_us_; }

  // For tests and waits: sends all, or receives one frame, within timeout_ms. Throws PeerError.
  void flush_within(int timeout_ms);
  PeerFrame receive_within(int timeout_ms);

 private:
  struct Part {
    Bytes own;
    std::span<const uint8_t> borrowed;
    size_t done = 0;
    [[nodiscard]] std::span<const uint8_t> rest() const {
      const std::span<const uint8_t> all = own.empty() ? borrowed : std::span<const uint8_t>(own);
      return all.subspan(done);
    }
  };
  void queue_header(PeerFrameType type, uint32_t body_bytes, uint32_t body_crc, Bytes more);
  bool fill(std::span<uint8_t> into);
  bool begin_body();
  std::optional<PeerFrame> end_body();

  TlsStream stream_;
  Place place_;
  uint32_t body_bytes_max_ = kPeerStrangerBytesMax;
  std::deque<Part> parts_;
  uint64_t sent_frames_ = 0, received_frames_ = 0;
  uint64_t heard_us_ = 0, sent_us_ = 0;

  // Of the frame that is coming.
  enum class Reading : uint8_t { kHeader, kOffset, kBody };
  Reading reading_ = Reading::kHeader;
  PeerFrameHeader header_;
  size_t filled_ = 0;
  uint64_t offset_ = 0;
  PeerFrame frame_;
  std::span<uint8_t> target_;
};

}  // namespace replpage
