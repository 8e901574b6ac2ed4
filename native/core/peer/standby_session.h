// A replica that this node keeps for another one: its keeper, and the connection that feeds it.
//
//   opened -- kCommitted --> standing by -- kPromote of the primary's node, promote() --> promoted
//   opened -- connection lost --> ended     standing by -- connection lost --> still standing by
//
// One thread runs it until its keeper has ended, its replica runs, or it is dropped. The keeper's
// channel is ours, so a replica that stands by ends with us.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "core/link/keeper_process.h"
#include "core/link/replica_options.h"
#include "core/peer/frame_stream.h"

namespace replpage {

// Called on the session's thread; must not block.
struct StandbyEvents {
  // `made`: places for shipped files; see FilesReadyMessage.
  std::function<void(const std::vector<std::string>& made)> opened = {};
  std::function<void(const CommittedMessage&)> committed = {};
  // The connection is over; the replica stands by as it is.
  std::function<void(const std::string& why)> cut_off = {};
  // It runs. `ordered`: by the primary's node, which will never run it again.
  std::function<void(const PromotedMessage&, bool ordered)> promoted = {};
  // Nothing is read from elsewhere any more.
  std::function<void(const DrainedMessage&)> drained = {};
  // There is no replica any more; the last event, once, unless it was promoted.
  std::function<void(const std::string& why)> lost = {};
};

struct StandbyOptions : ReplicaOptions {
  uint64_t silence_ms = 10'000;      // see RemotePlace
  std::vector<PeerFile> files = {};  // that the primary uses, as they are here
};

class StandbySession {
 public:
  StandbySession(StandbyOptions options, StandbyEvents events);
  ~StandbySession();
  StandbySession(const StandbySession&) = delete;
  StandbySession& operator=(const StandbySession&) = delete;

  // Starts the keeper, answers kOpen and goes on until the end.
  void run(FrameStream stream, const OpenMessage& open);

  // Any thread. Hangs up on the primary's node and lets the last committed epoch run; `promoted` or
  // `lost` tells what came of it. False: there is nothing to promote.
  bool promote(bool keep_files);
  // Any thread. Ends the session; a replica that was not promoted ends with it.
  void drop();

  [[nodiscard]] uint64_t epoch() const { return epoch_; }

 private:
  void prepare(const OpenMessage& open);
  void end_keeper();
  std::vector<std::string> give_files();
  void serve();
  template <class Work>
  void beside_stream(Work work);
  void look_at_orders();
  void hang_up(const std::string& why);
  void take_frames();
  void take(PeerFrame frame);
  void pass_on(CarriedMessage message);
  void take_answers();
  void answer(ReceivedMessage message);
  void keep_alive();
  std::span<uint8_t> place(uint64_t offset, uint64_t length);
  void end_of_place(const PeerFrame& frame);
  void free_staging();
  [[nodiscard]] bool standing_by() const { return epoch_ != 0 && !promoted_; }

  const StandbyOptions options_;
  const StandbyEvents events_;
  std::unique_ptr<StagingArea> staging_;
  std::optional<FrameStream> stream_;
  std::optional<KeeperProcess> keeper_;
  Bytes spilled_;               // on its way to the spill file
  uint64_t touched_ = 0;        // end of what was written to the staging memory
  uint64_t spill_touched_ = 0;  // and to the spill file
  WarmPart warm_memory_, warm_spill_;
  bool placed_since_commit_ = false;
  int unanswered_commits_ = 0;  // that the keeper was given
  std::atomic<uint64_t> epoch_ = 0;
  bool ordered_ = false;
  std::atomic<bool> promoted_ = false;
  bool drained_ = false;
  uint64_t promote_due_us_ = 0;

  UniqueFd wake_;
  std::mutex mutex_;
  bool drop_asked_ = false;
  std::optional<bool> promote_asked_;  // whether to keep files
};

}  // namespace replpage
