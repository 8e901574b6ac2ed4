// The primary's end of a replica on another node: stands between KeeperLink and the connection.
//
// KeeperLink has one end of a socketpair and finds no difference to a keeper of this machine. A
// thread has the other end: before it passes a message on that names staged bytes it sends those,
// and the pages of the runs in them.
#pragma once

#include <atomic>
#include <deque>
#include <optional>
#include <thread>
#include <vector>

#include "core/link/replica_place.h"
#include "core/peer/frame_stream.h"

namespace replpage {

struct RemotePlace {
  std::string host;
  uint16_t port = 0;
  std::string node;   // id of the node that must answer
  std::string token;  // that it gave out for this replica
  std::string group;  // its name
  uint64_t generation = 0;
  pid_t primary = 0;  // its root, by whose clocks the replica lives; 0: by this machine's
  NodeCredentials credentials;
  int connect_ms = 10'000;
  // Nothing heard for so long: the connection is over.
  uint64_t silence_ms = 10'000;
};

// What went over the connection, for figures.
struct RemoteFigures {
  uint64_t bytes = 0;  // staged bytes
};

class RemoteKeeper final : public ReplicaPlace {
 public:
  explicit RemoteKeeper(RemotePlace place) : place_(std::move(place)) {}
  ~RemoteKeeper() override { end(); }

  KeeperProcess start(const StagingArea& staging) override;
  void end() override;

  [[nodiscard]] RemoteFigures figures() const { return {.bytes = bytes_}; }

 private:
  // A message, and what must be there before it.
  struct Work {
    struct Piece {
      uint64_t offset = 0, length = 0;
    };
    std::deque<Piece> pieces;
    CarriedMessage message;
  };

  AcceptedMessage open(const StagingArea& staging);
  PrimaryClocks be_greeted();
  void run();
  void begin(ReceivedMessage message);
  void add_staged(const StagedBytes& staged);
  void add_runs(const StagedBytes& list);
  void advance();
  std::span<const uint8_t> staged(uint64_t offset, uint64_t length, Bytes& room) const;
  void take_frames();
  void pass_on(CarriedMessage message);
  void keep_alive();

  const RemotePlace place_;
  const StagingArea* staging_ = nullptr;
  std::optional<FrameStream> stream_;
  std::optional<Channel> channel_;
  std::optional<Work> work_;
  Bytes spilled_;  // of the piece that is being sent
  std::atomic<uint64_t> bytes_ = 0;
  UniqueFd stop_;
  std::thread thread_;
};

}  // namespace replpage
