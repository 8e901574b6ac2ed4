#include "keeper/replica_keeper.h"

#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/base/clock.h"
#include "core/base/proc_stat.h"
#include "core/base/procfs.h"
#include "core/base/sys_error.h"
#include "core/base/urgency.h"
#include "core/restore/rehearsal.h"
#include "core/restore/wait_limit.h"
#include "keeper/control_server.h"
#include "keeper/holder_link.h"
#include "keeper/keeper_status.h"
#include "keeper/lazy_service.h"
#include "keeper/memory_view.h"
#include "keeper/namespaces.h"
#include "keeper/oom_score.h"
#include "keeper/standby_replica.h"
#include "keeper/table_guard.h"
#include "keeper/wake_files.h"

namespace replpage {
namespace {

// After the group's end the outcome can be asked for, by a daemon that is restarted meanwhile; at
// most so long.
constexpr uint64_t kEndedLingerMs = 10'000;
constexpr uint64_t kEndedSeenLingerMs = 500;
// A processor that sleeps takes some 50 us to wake up, so for so long the order that was announced
// is waited for awake.
constexpr uint64_t kOrderAwaitedUs = 3000;
// Between two messages to a tracer that waits until nothing is missing.
constexpr uint64_t kProgressMs = 1000;
// For one message of the tracer, which gives us up a little later, without knowing why.
constexpr uint64_t kWorkUsMax = 45'000'000;
// So long after a promotion nothing is freed: the first answers need the processors.
constexpr uint64_t kQuietUs = 50'000;

enum class State : uint8_t { kStandby, kPromoted, kEnded };

class ReplicaKeeper {
 public:
  explicit ReplicaKeeper(KeeperSetup setup)
      : configuration_(std::move(setup.configuration)),
        staging_(std::make_unique<StagingReader>(
            std::move(setup.staging_memory), configuration_.staging_bytes,
            std::move(setup.staging_spill), configuration_.spill_bytes_max)),
        channel_(std::move(setup.channel)),
        outside_stream_(std::move(setup.outside_stream)),
        link_(std::move(setup.holder_link)),
        holder_(std::move(setup.holder)),
        children_(child_signals()),
        lazy_news_(make_eventfd()),
        control_(std::move(setup.control),
                 {.status = [this] { return status(); },
                  .end = [this] { end_group(); },
                  .hold_refill = [this](bool held) { hold_refill(held); }}),
        standby_(std::make_unique<StandbyReplica>(*staging_, configuration_.clocks.machine)) {}

  [[nodiscard]] int link() const { return link_.get(); }
  void see_primary(UniqueFd proc) { standby_->replica().see_primary(std::move(proc)); }

  // Until the group has ended. Throws what makes the replica useless before it runs.
  void run() {
    urgent_ = run_before_others();  // a death is to be answered at once
    while (!finished()) wait_and_handle();
  }

  // Tells the tracer why there is no replica any more. A lost source comes first: promotion fails
  // in its wake. Never throws.
  void report_failure(const std::string& what) noexcept {
    try {
      const std::string loss = faults_ ? faults_->loss() : "";
      const std::string& reason = loss.empty() ? what : loss;
      channel_.send(MessageType::kFailed, FailedMessage{.reason = reason, .error = 0});
    } catch (const std::exception&) {  // it has gone, and knows
    }
  }

 private:
  void wait_and_handle();
  void follow_tracer();
  void handle(ReceivedMessage message);
  void show_memory();
  void promote(const PromoteMessage& message);
  void handle_lazy_news();
  void tell_progress();
  void handle_children();
  void free_memory();
  void check_standby();
  void reap();
  void guard_while_lazy();
  void end_guard();
  void end_group();
  void hold_refill(bool held);
  [[nodiscard]] bool finished() const;
  [[nodiscard]] int linger_ms() const;
  [[nodiscard]] int wait_ms() const;
  [[nodiscard]] uint64_t free_due_us() const;
  [[nodiscard]] bool order_is_near() const;
  [[nodiscard]] bool is_draining() const;
  [[nodiscard]] std::string status() const;
  void translate_root();
  template <class T>
  void tell(MessageType type, T message);

  const cpu_set_t cpus_ = own_cpus();
  ConfigureMessage configuration_;
  std::unique_ptr<StagingReader> staging_;
  Channel channel_;
  UniqueFd outside_stream_;
  UniqueFd link_, holder_, children_, lazy_news_;
  ControlServer control_;
  std::unique_ptr<StandbyReplica> standby_;
  std::unique_ptr<FaultServer> faults_;
  FaultServer::Figures last_figures_;  // of a server that has done its work
  uint64_t quiet_until_us_ = 0;        // after the promotion

  State state_ = State::kStandby;
  bool urgent_ = false;
  pid_t root_ = 0, root_host_pid_ = 0;
  pid_t guard_ = 0;  // while pages are missing
  bool root_exited_ = false;
  int root_status_ = 0;
  bool tracer_gone_ = false;
  bool released_told_ = false;
  uint64_t progress_told_ms_ = 0;
  std::string loss_;  // why the group was killed, when we did it
  uint64_t ended_ms_ = 0;
  uint64_t awake_until_us_ = 0;
  bool end_requested_ = false;
  bool refill_held_ = false;
};

bool ReplicaKeeper::finished() const {
  if (state_ == State::kStandby) return end_requested_;
  return state_ == State::kEnded && linger_ms() == 0;
}

int ReplicaKeeper::linger_ms() const {
  const uint64_t limit = control_.end_was_seen() ? kEndedSeenLingerMs : kEndedLingerMs;
  const uint64_t since = now_us() / 1000 - ended_ms_;
  return since >= limit ? 0 : static_cast<int>(limit - since);
}

bool ReplicaKeeper::order_is_near() const {
  return state_ == State::kStandby && now_us() < awake_until_us_;
}

int ReplicaKeeper::wait_ms() const {
  if (state_ == State::kEnded) return linger_ms();
  if (const uint64_t due = free_due_us(); due != 0) {
    const uint64_t now = now_us();
    return due <= now ? 0 : static_cast<int>(std::min(kProgressMs, (due - now) / 1000 + 1));
  }
  if (is_draining()) return static_cast<int>(kProgressMs);
  return order_is_near() ? 0 : -1;
}

// 0: there is nothing to free, or SIGCHLD tells when.
uint64_t ReplicaKeeper::free_due_us() const {
  if (state_ != State::kPromoted) return 0;
  return staging_ ? quiet_until_us_ : standby_->replica().free_again_us();
}

bool ReplicaKeeper::is_draining() const {
  return state_ == State::kPromoted && faults_ && !released_told_;
}

void ReplicaKeeper::wait_and_handle() {
  std::vector<pollfd> items{
      // A replica that has ended shows when it is to run, too.
      {.fd = order_is_near() ? -1 : children_.get(), .events = POLLIN, .revents = 0},
      {.fd = lazy_news_.get(), .events = POLLIN, .revents = 0},
      {.fd = tracer_gone_ ? -1 : channel_.fd(), .events = POLLIN, .revents = 0},
      {.fd = state_ == State::kStandby ? holder_.get() : -1, .events = POLLIN, .revents = 0}};
  control_.add_polled(items);
  if (::poll(items.data(), items.size(), wait_ms()) < 0) {
    if (errno == EINTR) return;
    throw SysError::from_errno("poll of the keeper");
  }
  // Whoever looks at the primary's memory for that order may need this very processor.
  if (order_is_near()) ::sched_yield();
  if (items[3].revents != 0) throw SysError("watch the holder", ESRCH);
  if (items[2].revents != 0) follow_tracer();
  if (items[1].revents != 0) handle_lazy_news();
  if (items[0].revents != 0) handle_children();
  control_.handle(items);
  if (const uint64_t due = free_due_us(); due != 0 && due <= now_us()) free_memory();
  tell_progress();
}

void ReplicaKeeper::tell_progress() {
  const uint64_t now = now_us() / 1000;
  if (!is_draining() || now - progress_told_ms_ < kProgressMs) return;
  progress_told_ms_ = now;
  tell(MessageType::kDraining, DrainingMessage{.pages = faults_->figures().pages_filled});
}

void ReplicaKeeper::follow_tracer() {
  if (state_ != State::kStandby) {
    // Once the group runs nothing that comes from the tracer may change or end it.
    try {
      (void)channel_.receive(0);
      tracer_gone_ = channel_.closed();
    } catch (const std::exception&) {
      tracer_gone_ = true;
    }
    return;
  }
  if (std::optional<ReceivedMessage> message = channel_.receive(0)) handle(std::move(*message));
  if (channel_.closed()) throw SysError("follow the tracer", EPIPE);
}

// A tracer that went away after promotion is no loss; the channel shows it by itself.
template <class T>
void ReplicaKeeper::tell(MessageType type, T message) {
  try {
    channel_.send(type, std::move(message));
  } catch (const SysError&) {
    if (state_ == State::kStandby) throw;
  }
}

void ReplicaKeeper::handle(ReceivedMessage message) {
  const WaitLimit limit(kWorkUsMax);
  switch (message.type) {
    case MessageType::kBuild: {
      const RunsAsOthers leisurely(urgent_);
      standby_->build(decode<ImageMessage>(message.body));
      translate_root();
      return tell(MessageType::kBuilt, Bytes{});
    }
    case MessageType::kPages: {
      const RunsAsOthers leisurely(urgent_);
      standby_->apply_pages(decode<PagesMessage>(message.body));
      return tell(MessageType::kPagesDone, Bytes{});
    }
    case MessageType::kStage:
      return standby_->stage(decode<PagesMessage>(message.body));
    case MessageType::kCommit: {
      const RunsAsOthers leisurely(urgent_);
      return tell(MessageType::kCommitted, standby_->commit(decode<ImageMessage>(message.body)));
    }
    case MessageType::kRehearse:
      return tell(
          MessageType::kRehearsed,
          RehearsedMessage{why_not_here(*standby_->image(), configuration_.service_address)});
    case MessageType::kHash:
      return tell(MessageType::kHashes, standby_->hash(decode<HashMessage>(message.body)));
    case MessageType::kDrill:
      if (!configuration_.drill) throw FormatError("kDrill of a replica that is no drill's");
      tell(MessageType::kDrilled, standby_->drill(decode<DrillMessage>(message.body)));
      end_requested_ = true;
      return;
    case MessageType::kDying:
      standby_->get_ready();
      awake_until_us_ = now_us() + kOrderAwaitedUs;
      return;
    case MessageType::kDescriptors:
      return standby_->take_descriptors(decode<DescriptorsMessage>(message.body),
                                        std::move(message.descriptors));
    case MessageType::kLook:
      return show_memory();
    case MessageType::kStore:
      return standby_->use_store(decode<StoreMessage>(message.body),
                                 std::move(message.descriptors));
    case MessageType::kFiles:
      return tell(MessageType::kFilesReady,
                  FilesReadyMessage{standby_->take_files(decode<FilesMessage>(message.body))});
    case MessageType::kLastState:
      return standby_->take_last_state(decode<ImageMessage>(message.body));
    case MessageType::kPromote:
      return promote(decode<PromoteMessage>(message.body));
    default:
      throw FormatError("the tracer sent a message that is not for keepers");
  }
}

void ReplicaKeeper::show_memory() {
  if (standby_->epoch() == 0) throw FormatError("kLook before the first commit");
  send_view(channel_, standby_->replica().view());
}

void ReplicaKeeper::translate_root() {
  root_ = standby_->image()->processes.front().pid;
  root_host_pid_ = host_pid_of(link_.get(), root_);
}

void ReplicaKeeper::promote(const PromoteMessage& message) {
  if (configuration_.drill) throw FormatError("kPromote of a drill's replica");
  const uint64_t started = now_us();
  PromotionOrder order = standby_->prepare(message);
  order.input.outside_stream = std::move(outside_stream_);
  order.address = bring_address(configuration_.service_address);
  order.input.address = order.address.get();
  const PromotedReplica promoted =
      standby_->replica().promote(std::move(order.input), [&](PromotedReplica& replica) {
        if (!replica.lazy.empty()) {
          faults_ =
              serve_lazily(replica.lazy, order.sources, standby_->open_store(), lazy_news_, cpus_);
          faults_->hold_refill(refill_held_);
        }
      });
  state_ = State::kPromoted;
  if (order.address) order.address->stay();
  progress_told_ms_ = now_us() / 1000;
  root_ = promoted.root;
  tell(MessageType::kPromoted, PromotedMessage{.epoch = message.epoch,
                                               .promote_us = now_us() - started,
                                               .ran_us = promoted.ran_us,
                                               .pid = root_,
                                               .host_pid = root_host_pid_});
  run_as_others();
  // The group cannot do without its init, which is small.
  protect_from_oom_killer();
  guard_while_lazy();
  handle_lazy_news();
  quiet_until_us_ = now_us() + kQuietUs;
  free_memory();
  reap();
}

void ReplicaKeeper::handle_lazy_news() {
  swallow(lazy_news_.get());
  if (state_ == State::kStandby) return;  // ended: what killed the group may be told only now
  const FaultServer::Figures figures = faults_ ? faults_->figures() : FaultServer::Figures{};
  if (faults_ && figures.drained_us == 0) {
    loss_ = faults_->loss();
    if (!loss_.empty()) report_failure(loss_);
  }
  if (!loss_.empty()) return;
  if (!released_told_ && (!faults_ || figures.released_us != 0)) {
    released_told_ = true;
    tell(MessageType::kDrained,
         DrainedMessage{.pages = figures.pages_filled, .took_us = figures.released_us});
  }
  if (faults_ && figures.drained_us != 0) {
    last_figures_ = figures;
    faults_.reset();
    end_guard();
  }
}

void ReplicaKeeper::guard_while_lazy() {
  if (faults_ && faults_->figures().drained_us == 0) guard_ = start_table_guard();
}

void ReplicaKeeper::end_guard() {
  if (guard_ != 0) ::kill(guard_, SIGKILL);
}

void ReplicaKeeper::handle_children() {
  swallow(children_.get());
  if (state_ == State::kStandby) return check_standby();
  reap();
  free_memory();
  reap();
}

// Also ends the tasks that waited for locks of the dying process.
void ReplicaKeeper::free_memory() {
  if (state_ != State::kPromoted) return;
  const bool quiet = now_us() < quiet_until_us_;
  if (!quiet) staging_.reset();  // staged pages are never read again
  const WaitLimit limit(kWorkUsMax);
  try {
    standby_->replica().free_moved(quiet);
  } catch (const std::exception&) {  // costs memory, nothing else
  }
}

// SIGCHLD tells of every stop of the replica's threads too, so it is only an occasion to look.
void ReplicaKeeper::check_standby() {
  const GroupImage* image = standby_->image();
  if (image == nullptr) return;
  for (const ProcessImage& process : image->processes) {
    if (is_dead(process.pid, process.pid))
      throw SysError("keep the replica", ESRCH, on_pid(process.pid));
  }
}

void ReplicaKeeper::reap() {
  if (state_ != State::kPromoted) return;
  for (;;) {
    int status = 0;
    const pid_t pid = ::waitpid(-1, &status, WNOHANG | __WALL);
    if (pid < 0 && errno == EINTR) return;
    if (pid == 0) {
      if (guard_ != 0 && is_alone_with(guard_)) end_guard();
      return;
    }
    if (pid == guard_) guard_ = 0;
    if (pid == root_ && (WIFEXITED(status) || WIFSIGNALED(status))) {
      root_exited_ = true;
      root_status_ = status;
    }
    if (pid > 0) continue;
    state_ = State::kEnded;
    ended_ms_ = now_us() / 1000;
    control_.announce_end();
    return;
  }
}

void ReplicaKeeper::end_group() {
  if (state_ == State::kStandby) {
    end_requested_ = true;
  } else {
    ::kill(-1, SIGKILL);
  }
}

void ReplicaKeeper::hold_refill(bool held) {
  refill_held_ = held;
  if (faults_) faults_->hold_refill(held);
}

std::string ReplicaKeeper::status() const {
  const FaultServer::Figures faults = faults_ ? faults_->figures() : last_figures_;
  return to_json(
      {.state = state_ == State::kStandby    ? "standby"
                : state_ == State::kPromoted ? "promoted"
                                             : "ended",
       .name = configuration_.name,
       .pid = root_,
       .host_pid = root_host_pid_,
       .epoch = standby_->epoch(),
       .generation = configuration_.generation,
       .cold_pages = faults_ ? faults.stored_left : standby_->replica().cold_bytes() / kPageSize,
       .faults = faults,
       .exited = root_exited_,
       .status = root_status_,
       .reason = loss_});
}

// The holder's ignored signals must not become the replica's.
void reset_signals() {
  for (const int number : {SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGPIPE}) ::signal(number, SIG_DFL);
}

}  // namespace

int run_keeper(KeeperSetup setup) noexcept {
  const int link = setup.holder_link.get();
  std::unique_ptr<ReplicaKeeper> keeper;
  try {
    (void)::prctl(PR_SET_NAME, "replpage-keeper");
    reset_signals();
    UniqueFd proc = open_path("/proc", O_PATH | O_DIRECTORY);
    enter_namespaces(setup.primary.get(), setup.namespaces);
    if (setup.configuration.drill) cut_off();
    setup.primary.reset();
    set_oom_score("1000");
    const PrimaryClocks& clocks = setup.configuration.clocks;
    const ClockOffsets ahead = clocks.machine + clocks.inside;
    if (!ahead.none()) set_clocks_of_children(ahead);
    keeper = std::make_unique<ReplicaKeeper>(std::move(setup));
    keeper->see_primary(std::move(proc));
  } catch (const std::exception& error) {
    report_start(link, error.what());
    return 1;
  }
  report_start(link, "");
  int code = 0;
  try {
    keeper->run();
  } catch (const std::exception& error) {
    keeper->report_failure(error.what());
    code = 1;
  }
  // Without destructors: they would close userfaultfds under processes that still run, which then
  // read zeros. The kernel ends those first when we end.
  (void)keeper.release();
  return code;
}

}  // namespace replpage
