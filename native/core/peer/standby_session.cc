#include "core/peer/standby_session.h"

#include <fcntl.h>
#include <linux/falloc.h>
#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <iterator>
#include <utility>

#include "core/base/clock.h"
#include "core/base/page.h"
#include "core/base/sys_error.h"

namespace replpage {
namespace {

constexpr uint64_t kAliveMs = 1000;
constexpr int kAnswerMs = 10'000;
// What a keeper may take for a promotion: as long as KeeperLink gives it.
constexpr uint64_t kPromoteUsMax = 60'000'000;
// Of one message with files; paths may be 4 KiB long.
constexpr size_t kFilesBytesMax = 32 * 1024, kFileNumbersBytes = 32;

}  // namespace

StandbySession::StandbySession(StandbyOptions options, StandbyEvents events)
    : options_(std::move(options)),
      events_(std::move(events)),
      wake_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  if (!wake_.valid()) throw SysError::from_errno("eventfd");
}

StandbySession::~StandbySession() = default;

void StandbySession::run(FrameStream stream, const OpenMessage& open) {
  stream_.emplace(std::move(stream));
  try {
    prepare(open);
    serve();
  } catch (const std::exception& error) {
    hang_up(error.what());
    end_keeper();
    if (!promoted_) events_.lost(error.what());
    return;
  }
  hang_up("the replica is dropped");
  end_keeper();
  if (!promoted_) events_.lost("it was dropped");
}

// With the keeper's channel an unpromoted replica ends. One that hangs in the middle of a promotion
// would go on with it some day, when others believe that it has ended.
void StandbySession::end_keeper() {
  if (keeper_ && !promoted_ && promote_due_us_ != 0) {
    ::syscall(SYS_pidfd_send_signal, keeper_->pidfd.get(), SIGKILL, nullptr, 0);
  }
  keeper_.reset();
}

void StandbySession::prepare(const OpenMessage& open) {
  std::vector<std::string> made;
  try {
    if (open.generation != options_.generation || open.name != options_.name) {
      throw FormatError("the replica that comes is another than was prepared for");
    }
    staging_ = std::make_unique<StagingArea>(
        StagingOptions{.memory_bytes = open.staging_bytes,
                       .spill_bytes_max = std::min(open.spill_bytes_max, options_.spill_bytes_max),
                       .spill_directory = options_.spill_directory});
    ReplicaOptions replica = options_;
    replica.clocks = open.clocks;
    keeper_.emplace(spawn_keeper_of(replica, 0, *staging_));
    made = give_files();
  } catch (const std::exception& error) {
    stream_->send_encoded(PeerFrameType::kRefused, RefusedMessage{error.what()});
    stream_->flush_within(kAnswerMs);
    throw;
  }
  stream_->trust([this](uint64_t offset, uint64_t length) { return place(offset, length); });
  stream_->send_encoded(PeerFrameType::kAccepted, AcceptedMessage{keeper_->notes});
  events_.opened(made);
}

// What is mapped or open there has other numbers here.
std::vector<std::string> StandbySession::give_files() {
  std::vector<std::string> made;
  FilesMessage part;
  size_t bytes = 0;
  const auto give = [&] {
    part.keep_files = options_.keep_files;
    keeper_->channel.send(MessageType::kFiles, std::exchange(part, {}));
    bytes = 0;
    const auto answer = keeper_->channel.receive(kAnswerMs);
    if (!answer) throw PeerError("the keeper does not answer");
    if (answer->type == MessageType::kFailed) {
      throw PeerError(decode<FailedMessage>(answer->body).reason);
    }
    if (answer->type != MessageType::kFilesReady) throw PeerError("the keeper answers out of turn");
    std::ranges::move(decode<FilesReadyMessage>(answer->body).made, std::back_inserter(made));
  };
  for (const PeerFile& file : options_.files) {
    part.files.push_back(file);
    bytes += file.path.size() + file.copy.size() + kFileNumbersBytes;
    if (bytes > kFilesBytesMax) give();
  }
  if (!part.files.empty()) give();
  return made;
}

// Until it is dropped. Throws what ends the replica.
void StandbySession::serve() {
  for (;;) {
    bool all_sent = true;
    beside_stream([&] { all_sent = stream_->flush(); });
    pollfd items[3] = {
        {.fd = wake_.get(), .events = POLLIN, .revents = 0},
        {.fd = stream_ ? stream_->fd() : -1,
         .events = static_cast<short>(all_sent ? POLLIN : POLLIN | POLLOUT),
         .revents = 0},
        {.fd = drained_ ? -1 : keeper_->channel.fd(), .events = POLLIN, .revents = 0}};
    const int wait_ms = stream_ && stream_->has_pending() ? 0 : static_cast<int>(kAliveMs);
    if (::poll(items, 3, wait_ms) < 0 && errno != EINTR) {
      throw SysError::from_errno("poll of a replica's connection");
    }
    look_at_orders();
    {
      const std::lock_guard lock(mutex_);
      // Whoever has been told to run is not dropped.
      if (drop_asked_ && promote_due_us_ == 0) return;
    }
    if (drained_ && !stream_) return;
    if (items[2].revents != 0 && !drained_) take_answers();
    beside_stream([this] { take_frames(); });
    beside_stream([this] { keep_alive(); });
    if (!stream_ && options_.drill) throw PeerError("the drill is over");
    if (!stream_ && epoch_ == 0)
      throw PeerError("the primary's node is lost before the first epoch");
    if (promote_due_us_ != 0 && now_us() > promote_due_us_) {
      throw SysError("wait for the keeper to promote", ETIMEDOUT);
    }
  }
}

// What goes wrong with the connection ends it, and not the replica.
template <class Work>
void StandbySession::beside_stream(Work work) {
  if (!stream_) return;
  try {
    work();
  } catch (const PeerError& error) {
    hang_up(error.what());
  } catch (const FormatError& error) {
    hang_up(error.what());
  }
}

bool StandbySession::promote(bool keep_files) {
  if (!standing_by()) return false;
  const std::lock_guard lock(mutex_);
  if (drop_asked_) return false;
  promote_asked_ = keep_files;
  const uint64_t one = 1;
  (void)!::write(wake_.get(), &one, sizeof one);
  return true;
}

void StandbySession::drop() {
  const std::lock_guard lock(mutex_);
  drop_asked_ = true;
  const uint64_t one = 1;
  (void)!::write(wake_.get(), &one, sizeof one);
}

void StandbySession::look_at_orders() {
  uint64_t count = 0;
  (void)!::read(wake_.get(), &count, sizeof count);
  std::optional<bool> keep_files;
  {
    const std::lock_guard lock(mutex_);
    // The epoch that is under way is one to be promoted from, or none: that is known soon.
    if (unanswered_commits_ == 0) keep_files = std::exchange(promote_asked_, std::nullopt);
  }
  if (!keep_files || !standing_by() || ordered_ || promote_due_us_ != 0) return;
  hang_up("its replica is promoted here");
  promote_due_us_ = now_us() + kPromoteUsMax;
  keeper_->channel.send(
      MessageType::kPromote,
      PromoteMessage{
          .epoch = epoch_, .exact = false, .keep_files = *keep_files, .runs = {}, .lazy = {}});
}

void StandbySession::hang_up(const std::string& why) {
  if (!stream_) return;
  try {
    stream_->send_encoded(PeerFrameType::kRefused, RefusedMessage{why});
    (void)stream_->flush();
  } catch (const std::exception&) {  // it has gone, and will find out
  }
  stream_.reset();
  if (standing_by()) events_.cut_off(why);
}

// ---- from the primary's node

std::span<uint8_t> StandbySession::place(uint64_t offset, uint64_t length) {
  const uint64_t border = staging_->memory_bytes();
  placed_since_commit_ = true;
  if (offset < border) {
    if (length > border - offset) throw FormatError("staged bytes cross the spill border");
    touched_ = std::max(touched_, offset + length);
    return staging_->memory().subspan(offset, length);
  }
  const uint64_t at = offset - border;
  if (at > staging_->spill_bytes_max() || length > staging_->spill_bytes_max() - at) {
    const std::string& problem = staging_->spill_problem();
    throw FormatError(problem.empty() ? "staged bytes lie outside the staging area"
                                      : "an epoch does not fit into memory: " + problem);
  }
  spilled_.resize(length);
  return spilled_;
}

void StandbySession::end_of_place(const PeerFrame& frame) {
  const uint64_t border = staging_->memory_bytes();
  if (frame.offset < border) return;
  spill_touched_ = std::max(spill_touched_, frame.offset - border + frame.length);
  for (uint64_t done = 0; done < frame.length;) {
    const ssize_t put = ::pwrite(staging_->spill_fd(), spilled_.data() + done, frame.length - done,
                                 static_cast<off_t>(frame.offset - border + done));
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) throw PeerError(SysError::from_errno("write the spill file").what());
    done += static_cast<uint64_t>(put);
  }
}

void StandbySession::take_frames() {
  while (stream_) {
    auto frame = stream_->receive();
    if (!frame) return;
    take(std::move(*frame));
  }
}

void StandbySession::take(PeerFrame frame) {
  switch (frame.type) {
    case PeerFrameType::kBytes:
      return end_of_place(frame);
    case PeerFrameType::kMessage:
      return pass_on(carried(frame.body));
    case PeerFrameType::kAlive:
      return;
    default:
      throw FormatError("the primary's node sent what only a replica's node sends");
  }
}

void StandbySession::pass_on(CarriedMessage message) {
  switch (message.type) {
    case MessageType::kBuild:
    case MessageType::kPages:
    case MessageType::kStage:
    case MessageType::kRehearse:
    case MessageType::kDrill:
    case MessageType::kHash:
    case MessageType::kDying:
    case MessageType::kLastState:
      break;
    case MessageType::kCommit:
      placed_since_commit_ = false;
      ++unanswered_commits_;
      break;
    case MessageType::kPromote:
      // From here on that node never runs it again, whatever becomes of the connection.
      ordered_ = true;
      promote_due_us_ = now_us() + kPromoteUsMax;
      break;
    default:
      throw FormatError("the primary's node sent a message that is not for keepers");
  }
  keeper_->channel.send(message.type, std::move(message.body));
}

void StandbySession::keep_alive() {
  const uint64_t now = now_us();
  if (now > stream_->heard_us() + options_.silence_ms * 1000) {
    throw PeerError("the primary's node was not heard for " +
                    std::to_string(options_.silence_ms / 1000) + " s");
  }
  if (now > stream_->sent_us() + kAliveMs * 1000) stream_->send(PeerFrameType::kAlive, {});
}

// ---- from the keeper

void StandbySession::take_answers() {
  while (auto message = keeper_->channel.receive(0)) answer(std::move(*message));
  if (!keeper_->channel.closed()) return;
  if (promoted_) {
    drained_ = true;  // or has ended: nothing more is to be heard
    return;
  }
  throw SysError("keep a replica: its keeper is gone", ESRCH);
}

// Passed on first: whoever waits there is not kept waiting by what is done here.
void StandbySession::answer(ReceivedMessage message) {
  if (stream_) {
    stream_->send(PeerFrameType::kMessage, carry({.type = message.type, .body = message.body}));
  }
  switch (message.type) {
    case MessageType::kCommitted: {
      const auto committed = decode<CommittedMessage>(message.body);
      epoch_ = committed.epoch;
      --unanswered_commits_;
      // What came since is of a last epoch.
      if (!placed_since_commit_) free_staging();
      return events_.committed(committed);
    }
    case MessageType::kPromoted: {
      const auto promoted = decode<PromotedMessage>(message.body);
      promote_due_us_ = 0;
      promoted_ = true;
      epoch_ = promoted.epoch;
      free_staging();
      return events_.promoted(promoted, ordered_);
    }
    case MessageType::kDrained:
      drained_ = true;
      return events_.drained(decode<DrainedMessage>(message.body));
    case MessageType::kFailed:
      if (!promoted_) throw PeerError(decode<FailedMessage>(message.body).reason);
      return;
    default:
      return;
  }
}

// The keeper has read all that was staged.
void StandbySession::free_staging() {
  const uint64_t spilled =
      warm_spill_.note(std::exchange(spill_touched_, 0), promoted_ ? 0 : UINT64_MAX);
  // Failure costs memory until the next time, nothing else.
  if (spilled > warm_spill_.bytes()) {
    (void)!::ftruncate(staging_->spill_fd(), static_cast<off_t>(warm_spill_.bytes()));
  }
  const uint64_t most = promoted_ ? 0 : warm_spill_.bytes() > 0 ? UINT64_MAX : kWarmMemoryMax;
  const uint64_t populated = warm_memory_.note(std::exchange(touched_, 0), most);
  const uint64_t kept = warm_memory_.bytes();
  if (populated > kept) {
    (void)::fallocate(staging_->memory_fd(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                      static_cast<off_t>(kept), static_cast<off_t>(page_ceil(populated) - kept));
  }
}

}  // namespace replpage
