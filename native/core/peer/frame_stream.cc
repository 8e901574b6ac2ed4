#include "core/peer/frame_stream.h"

#include <poll.h>

#include <cstring>

#include "core/base/clock.h"
#include "core/base/crc32c.h"

namespace replpage {
namespace {

std::span<const uint8_t> bytes_of(const uint64_t& number) {
  return {reinterpret_cast<const uint8_t*>(&number), sizeof number};
}

// Of a wait that a test or the first words on a connection make.
void wait_for(int fd, short events, uint64_t end_us) {
  const uint64_t now = now_us();
  if (now >= end_us) throw PeerError("the other side was not heard in time");
  pollfd item{.fd = fd, .events = events, .revents = 0};
  (void)::poll(&item, 1, static_cast<int>((end_us - now) / 1000 + 1));
}

}  // namespace

FrameStream::FrameStream(TlsStream stream)
    : stream_(std::move(stream)), heard_us_(now_us()), sent_us_(heard_us_) {}

void FrameStream::trust(Place place) {
  place_ = std::move(place);
  body_bytes_max_ = kPeerBodyBytesMax;
}

void FrameStream::queue_header(PeerFrameType type, uint32_t body_bytes, uint32_t body_crc,
                               Bytes more) {
  PeerFrameHeader header{
      .type = type, .body_bytes = body_bytes, .body_crc = body_crc, .sequence = ++sent_frames_};
  header.header_crc = header_crc(header);
  Bytes own(sizeof header + more.size());
  std::memcpy(own.data(), &header, sizeof header);
  if (!more.empty()) std::memcpy(own.data() + sizeof header, more.data(), more.size());
  parts_.push_back({.own = std::move(own), .borrowed = {}});
  sent_us_ = now_us();
}

void FrameStream::send(PeerFrameType type, Bytes body) {
  const auto bytes = static_cast<uint32_t>(body.size());
  const uint32_t crc = crc32c(body);
  queue_header(type, bytes, crc, std::move(body));
}

void FrameStream::send_bytes(uint64_t offset, std::span<const uint8_t> data) {
  const std::span<const uint8_t> place = bytes_of(offset);
  const uint32_t crc = crc32c(data, crc32c(place));
  queue_header(PeerFrameType::kBytes, static_cast<uint32_t>(place.size() + data.size()), crc,
               Bytes(place.begin(), place.end()));
  parts_.push_back({.own = {}, .borrowed = data});
}

bool FrameStream::flush() {
  for (;;) {
    while (!parts_.empty()) {
      Part& part = parts_.front();
      part.done += stream_.write(part.rest());
      if (!part.rest().empty()) break;
      parts_.pop_front();
    }
    if (!stream_.flush()) return false;
    if (parts_.empty()) return true;
  }
}

// True: all of it is there.
bool FrameStream::fill(std::span<uint8_t> into) {
  while (filled_ < into.size()) {
    const size_t got = stream_.read(into.subspan(filled_));
    if (got == 0) return false;
    heard_us_ = now_us();
    filled_ += got;
  }
  filled_ = 0;
  return true;
}

bool FrameStream::begin_body() {
  check_header(header_, received_frames_ + 1, body_bytes_max_);
  ++received_frames_;
  frame_ = {.type = header_.type, .body = {}, .offset = 0, .length = 0};
  if (header_.type != PeerFrameType::kBytes) {
    frame_.body.resize(header_.body_bytes);
    target_ = frame_.body;
    return true;
  }
  if (!place_ || header_.body_bytes <= sizeof offset_) {
    throw FormatError("staged bytes where there are none to come");
  }
  return false;
}

std::optional<PeerFrame> FrameStream::end_body() {
  const bool staged = header_.type == PeerFrameType::kBytes;
  const uint32_t crc = crc32c(target_, staged ? crc32c(bytes_of(offset_)) : 0);
  if (crc != header_.body_crc) throw FormatError("a frame's body is damaged");
  reading_ = Reading::kHeader;
  return std::move(frame_);
}

std::optional<PeerFrame> FrameStream::receive() {
  if (reading_ == Reading::kHeader) {
    if (!fill({reinterpret_cast<uint8_t*>(&header_), sizeof header_})) return std::nullopt;
    reading_ = begin_body() ? Reading::kBody : Reading::kOffset;
  }
  if (reading_ == Reading::kOffset) {
    if (!fill({reinterpret_cast<uint8_t*>(&offset_), sizeof offset_})) return std::nullopt;
    frame_.offset = offset_;
    frame_.length = header_.body_bytes - sizeof offset_;
    target_ = place_(frame_.offset, frame_.length);
    reading_ = Reading::kBody;
  }
  if (!fill(target_)) return std::nullopt;
  return end_body();
}

void FrameStream::flush_within(int timeout_ms) {
  const uint64_t end_us = now_us() + static_cast<uint64_t>(timeout_ms) * 1000;
  while (!flush()) wait_for(fd(), POLLOUT, end_us);
}

PeerFrame FrameStream::receive_within(int timeout_ms) {
  const uint64_t end_us = now_us() + static_cast<uint64_t>(timeout_ms) * 1000;
  for (;;) {
    if (auto frame = receive()) return std::move(*frame);
    wait_for(fd(), POLLIN, end_us);
  }
}

}  // namespace replpage
