#include "core/peer/remote_keeper.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "core/base/clock.h"
#include "core/base/crc32c.h"
#include "core/base/sys_error.h"
#include "core/link/keeper_lost.h"

namespace replpage {
namespace {

constexpr uint64_t kAliveMs = 1000;
// A list of runs is read here to find the pages in it; one such is some 40 bytes.
constexpr uint64_t kListBytesMax = 256ull << 20;

void signal_event(const UniqueFd& event) {
  const uint64_t one = 1;
  if (event.valid()) (void)!::write(event.get(), &one, sizeof one);
}

}  // namespace

KeeperProcess RemoteKeeper::start(const StagingArea& staging) {
  end();
  int ends[2];
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0) {
    throw SysError::from_errno("socketpair for a replica on another node");
  }
  Channel ours{UniqueFd(ends[0])};
  channel_.emplace(UniqueFd(ends[1]));
  staging_ = &staging;
  AcceptedMessage accepted;
  try {
    accepted = open(staging);
  } catch (const PeerError& error) {
    stream_.reset();
    throw KeeperLost(error.what());
  }
  stop_.reset(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!stop_.valid()) throw SysError::from_errno("eventfd");
  thread_ = std::thread([this] { run(); });
  return {.channel = std::move(ours),
          .holder = 0,
          .keeper = 0,
          .pidfd = {},
          .notes = std::move(accepted.notes)};
}

AcceptedMessage RemoteKeeper::open(const StagingArea& staging) {
  const TlsContext context(place_.credentials, TlsRole::kClient);
  stream_.emplace(TlsStream(connect_to(place_.host, place_.port, place_.connect_ms), context,
                            place_.connect_ms));
  if (stream_->peer().id != place_.node) {
    throw PeerError("node " + stream_->peer().name + " answers where another one should");
  }
  const PrimaryClocks clocks = be_greeted();
  stream_->trust({});
  stream_->send_encoded(PeerFrameType::kOpen,
                        OpenMessage{.token = place_.token,
                                    .name = place_.group,
                                    .generation = place_.generation,
                                    .staging_bytes = staging.memory_bytes(),
                                    .spill_bytes_max = staging.spill_bytes_max(),
                                    .clocks = clocks});
  stream_->flush_within(place_.connect_ms);
  const PeerFrame answer = stream_->receive_within(place_.connect_ms);
  if (answer.type == PeerFrameType::kRefused) {
    throw PeerError(decode<RefusedMessage>(answer.body).why);
  }
  if (answer.type != PeerFrameType::kAccepted) {
    throw PeerError("the replica's node answered with something else");
  }
  return decode<AcceptedMessage>(answer.body);
}

PrimaryClocks RemoteKeeper::be_greeted() {
  const PeerFrame greeting = stream_->receive_within(place_.connect_ms);
  if (greeting.type != PeerFrameType::kGreeting) {
    throw PeerError("the replica's node does not greet");
  }
  PrimaryClocks clocks;
  clocks.machine = ahead_of(decode<GreetingMessage>(greeting.body).clocks, read_clocks());
  if (place_.primary != 0) {
    clocks.inside = clock_offsets_of(place_.primary) - clock_offsets_of(::getpid());
  }
  return clocks;
}

void RemoteKeeper::end() {
  if (thread_.joinable()) {
    signal_event(stop_);
    thread_.join();
  }
  stream_.reset();
  channel_.reset();
  work_.reset();
}

// Until KeeperLink hangs up, or the connection is over: then it is told why.
void RemoteKeeper::run() {
  std::string reason;
  try {
    while (!channel_->closed()) {
      if (work_) advance();
      const bool all_sent = stream_->flush();
      pollfd items[3] = {{.fd = stop_.get(), .events = POLLIN, .revents = 0},
                         {.fd = stream_->fd(),
                          .events = static_cast<short>(all_sent ? POLLIN : POLLIN | POLLOUT),
                          .revents = 0},
                         {.fd = work_ ? -1 : channel_->fd(), .events = POLLIN, .revents = 0}};
      const bool busy = (work_ && all_sent) || stream_->has_pending();
      const int wait_ms = busy ? 0 : static_cast<int>(kAliveMs);
      if (::poll(items, 3, wait_ms) < 0 && errno != EINTR) {
        throw SysError::from_errno("poll of a connection");
      }
      if (items[0].revents != 0) return;
      take_frames();
      if (items[2].revents != 0) {
        if (auto message = channel_->receive(0)) begin(std::move(*message));
      }
      keep_alive();
    }
    return;
  } catch (const std::exception& error) {
    reason = error.what();
  }
  try {
    channel_->send(MessageType::kFailed,
                   FailedMessage{.reason = "the replica's node is lost: " + reason, .error = 0});
  } catch (const std::exception&) {  // nobody listens any more
  }
  ::shutdown(channel_->fd(), SHUT_RDWR);
}

void RemoteKeeper::begin(ReceivedMessage message) {
  work_.emplace();
  switch (message.type) {
    case MessageType::kBuild:
    case MessageType::kCommit:
    case MessageType::kLastState:
      add_staged(decode<ImageMessage>(message.body).image);
      break;
    case MessageType::kPages:
    case MessageType::kStage:
      add_runs(decode<PagesMessage>(message.body).runs);
      break;
    case MessageType::kPromote: {
      const auto order = decode<PromoteMessage>(message.body);
      add_runs(order.runs);
      add_staged(order.lazy);
      break;
    }
    case MessageType::kRehearse:
    case MessageType::kDrill:
    case MessageType::kHash:
    case MessageType::kDying:
      break;
    default:
      throw FormatError("a message that takes descriptors cannot go to another node");
  }
  work_->message = {.type = message.type, .body = std::move(message.body)};
}

void RemoteKeeper::add_staged(const StagedBytes& staged) {
  if (staged.length != 0) work_->pieces.push_back({staged.offset, staged.length});
}

// Pages first: whoever has the list has them too.
void RemoteKeeper::add_runs(const StagedBytes& list) {
  if (list.length == 0) return;
  if (list.length > kListBytesMax) throw FormatError("a list of pages is longer than allowed");
  Bytes room;
  const std::span<const uint8_t> bytes = staged(list.offset, list.length, room);
  if (crc32c(bytes) != list.crc) throw FormatError("a list of pages is damaged");
  for (const PageRun& run : decode<PageRunList>(bytes).runs) {
    if (run.kind != PageRunKind::kData) continue;
    auto& pieces = work_->pieces;
    if (!pieces.empty() && pieces.back().offset + pieces.back().length == run.data_offset &&
        run.data_offset != staging_->memory_bytes()) {
      pieces.back().length += run.length;
    } else {
      pieces.push_back({run.data_offset, run.length});
    }
  }
  add_staged(list);
}

// Valid until the next call with the same room.
std::span<const uint8_t> RemoteKeeper::staged(uint64_t offset, uint64_t length, Bytes& room) const {
  const uint64_t border = staging_->memory_bytes();
  if (offset < border) {
    if (length > border - offset) throw FormatError("staged bytes cross the spill border");
    return staging_->memory().subspan(offset, length);
  }
  room.resize(length);
  for (uint64_t done = 0; done < length;) {
    const ssize_t got = ::pread(staging_->spill_fd(), room.data() + done, length - done,
                                static_cast<off_t>(offset - border + done));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) throw SysError::from_errno("read the spill file");
    if (got == 0) throw FormatError("the spill file is truncated");
    done += static_cast<uint64_t>(got);
  }
  return room;
}

// The next frame of the work: one at a time, so that `spilled_` and what waits stay small.
void RemoteKeeper::advance() {
  if (!stream_->flush()) return;
  if (work_->pieces.empty()) {
    stream_->send(PeerFrameType::kMessage, carry(work_->message));
    work_.reset();
    return;
  }
  Work::Piece& piece = work_->pieces.front();
  const uint64_t length = std::min<uint64_t>(piece.length, kPeerChunkBytes);
  stream_->send_bytes(piece.offset, staged(piece.offset, length, spilled_));
  bytes_ += length;
  piece.offset += length;
  piece.length -= length;
  if (piece.length == 0) work_->pieces.pop_front();
}

void RemoteKeeper::take_frames() {
  while (auto frame = stream_->receive()) {
    switch (frame->type) {
      case PeerFrameType::kMessage:
        pass_on(carried(frame->body));
        break;
      case PeerFrameType::kRefused:
        throw PeerError(decode<RefusedMessage>(frame->body).why);
      case PeerFrameType::kAlive:
        break;
      default:
        throw FormatError("the replica's node sent what only a primary's node sends");
    }
  }
}

void RemoteKeeper::pass_on(CarriedMessage message) {
  switch (message.type) {
    case MessageType::kPromoted: {
      // The other machine's clock and pids mean nothing here.
      auto promoted = decode<PromotedMessage>(message.body);
      promoted.ran_us = now_us();
      promoted.host_pid = 0;
      channel_->send(MessageType::kPromoted, promoted);
      return;
    }
    case MessageType::kPagesDone:
    case MessageType::kCommitted:
    case MessageType::kRehearsed:
    case MessageType::kDrilled:
    case MessageType::kHashes:
    case MessageType::kDraining:
    case MessageType::kDrained:
    case MessageType::kFailed:
    case MessageType::kBuilt:
      channel_->send(message.type, std::move(message.body));
      return;
    default:
      throw FormatError("the replica's node sent a message that is not from a keeper");
  }
}

void RemoteKeeper::keep_alive() {
  const uint64_t now = now_us();
  if (now > stream_->heard_us() + place_.silence_ms * 1000) {
    throw PeerError("it was not heard for " + std::to_string(place_.silence_ms / 1000) + " s");
  }
  if (now > stream_->sent_us() + kAliveMs * 1000) stream_->send(PeerFrameType::kAlive, {});
}

}  // namespace replpage
