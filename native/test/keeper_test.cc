// The keeper through its real messages: it starts, follows, ends with its tracer, lets a replica
// run and serves its missing pages; and nothing that kills it makes a missing page read as zero.
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>

#include <atomic>
#include <cstring>
#include <random>

#include "core/base/clock.h"
#include "core/base/procfs.h"
#include "core/base/sys_error.h"
#include "core/capture/group_capture.h"
#include "core/capture/keeper_lost.h"
#include "core/capture/keeper_process.h"
#include "core/trace/trace_tree.h"
#include "test/test.h"

namespace replpage {
namespace {

const int kAnswerMs = 20'000 * testing::slowness();

// REPLPAGE_KEEPER, else beside this test.
std::string keeper_path() {
  if (const char* path = std::getenv("REPLPAGE_KEEPER")) return path;
  const std::string self = read_link("/proc/self/exe").value_or("");
  return self.substr(0, self.rfind('/')) + "/replpage-keeper";
}

void need_keeper() {
  if (::access(keeper_path().c_str(), X_OK) != 0) SKIP("replpage-keeper is not built");
  if (::geteuid() != 0) SKIP("needs root");
}

// Each keeper has a socket of its own, as in a daemon: a holder that ends removes its socket's
// name.
int keepers = 0;

std::string control_path() {
  return "/tmp/replpage-keeper-test." + std::to_string(::getpid()) + "." + std::to_string(keepers);
}

KeeperProcess spawn(const StagingArea& staging, uint64_t generation = 1) {
  ++keepers;
  return spawn_keeper({.executable = keeper_path(),
                       .name = "keeper-test-" + std::to_string(::getpid()),
                       .generation = generation,
                       .primary = ::getpid(),
                       .control_socket = control_path(),
                       .stdio = -1,
                       .stdio_path = {}},
                      staging);
}

// "" when nobody listens.
std::string ask(const std::string& command) {
  UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::strncpy(address.sun_path, control_path().c_str(), sizeof address.sun_path - 1);
  if (::connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) return "";
  const std::string line = command + "\n";
  CHECK(::send(fd.get(), line.data(), line.size(), MSG_NOSIGNAL) > 0);
  char answer[4096];
  pollfd item{.fd = fd.get(), .events = POLLIN, .revents = 0};
  if (::poll(&item, 1, kAnswerMs) != 1) return "no answer";
  const ssize_t got = ::recv(fd.get(), answer, sizeof answer, 0);
  return got <= 0 ? "" : std::string(answer, static_cast<size_t>(got));
}

bool has(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

bool ends(const UniqueFd& pidfd, int timeout_ms = kAnswerMs) {
  pollfd item{.fd = pidfd.get(), .events = POLLIN, .revents = 0};
  return ::poll(&item, 1, timeout_ms) == 1;
}

UniqueFd pidfd_of(pid_t pid) {
  return UniqueFd(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
}

template <class Condition>
bool within(int milliseconds, Condition condition) {
  for (int i = 0; i < milliseconds * testing::slowness(); ++i) {
    if (condition()) return true;
    ::usleep(1000);
  }
  return condition();
}

// ---- a victim, captured once

constexpr uint64_t kPages = 16'384;
constexpr uint64_t kBase = 0x210000000000;

struct Board {
  std::atomic<uint64_t> rounds, wrong;
  std::atomic<int> pid, end;
};

uint64_t value_at(uint64_t page) { return (page + 1) * 0x9E3779B97F4A7C15ull; }

// Runs in the victim and in every replica of it.
[[noreturn]] void victim_body(Board* board) {
  auto* memory = static_cast<volatile uint64_t*>(
      ::mmap(reinterpret_cast<void*>(kBase), kPages * kPageSize, PROT_READ | PROT_WRITE,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0));
  constexpr uint64_t kWords = kPageSize / sizeof(uint64_t);
  for (uint64_t page = 0; page < kPages; ++page) memory[page * kWords] = value_at(page);
  uint64_t state = 1;
  for (;;) {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    const uint64_t page = (state >> 33) % kPages;
    if (memory[page * kWords] != value_at(page)) ++board->wrong;
    if (++board->rounds % 64 == 0) board->pid = ::getpid();
    if (board->end != 0) ::_exit(board->end);
  }
}

Board* map_board(const std::string& path) {
  const UniqueFd file = open_path(path, O_RDWR);
  void* at = ::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file.get(), 0);
  CHECK(at != MAP_FAILED);
  return static_cast<Board*>(at);
}

constexpr const char* kVictimName = "keeper-test-victim";

// The victim is this program started anew, so that nothing of the test is in it.
__attribute__((constructor)) void become_victim(int argc, char** argv) {
  if (argc == 2 && std::strcmp(argv[0], kVictimName) == 0) victim_body(map_board(argv[1]));
}

class Victim : private TraceObserver {
 public:
  Victim() : tree_(*this), capture_(tree_, std::nullopt, {}, cancelled_) {
    path_ = "/tmp/replpage-keeper-board." + std::to_string(::getpid());
    const UniqueFd file = open_path(path_, O_RDWR | O_CREAT | O_TRUNC, 0600);
    CHECK(::ftruncate(file.get(), 4096) == 0);
    board_ = map_board(path_);
    pid_ = ::fork();
    if (pid_ == 0) {
      ::syscall(SYS_close_range, 0, ~0u, 0);
      ::open("/dev/null", O_RDWR);
      ::execl("/proc/self/exe", kVictimName, path_.c_str(), nullptr);
      ::_exit(127);
    }
    CHECK(within(10'000, [this] { return board_->rounds > 0; }));
    tree_.seize(pid_, true);
    FreezeResult frozen;
    for (int tries = 0; tries < 20 && !frozen.frozen; ++tries) frozen = tree_.freeze(500'000);
    CHECK(frozen.frozen);
    Refusals refusals;
    image_ = capture_.capture_state({.slow_state = true,
                                     .inject = true,
                                     .with_content = true,
                                     .refusals = &refusals,
                                     .unseen_ends = true});
    for (const auto& refusal : refusals)
      testing::note(refusal.object + " " + refusal.kind + ": " + refusal.why);
    CHECK(refusals.empty());
    capture_.admit_new();
  }
  ~Victim() override {
    ::kill(pid_, SIGKILL);
    tree_.detach();
    ::waitpid(pid_, nullptr, 0);
    ::munmap(board_, 4096);
    ::unlink(path_.c_str());
  }

  Board& board() { return *board_; }
  GroupImage& image() { return image_; }
  GroupCapture& capture() { return capture_; }
  [[nodiscard]] pid_t pid() const { return pid_; }
  [[nodiscard]] int32_t group_pid() const { return image_.processes[0].pid; }
  [[nodiscard]] UniqueFd memory() const {
    return open_path("/proc/" + std::to_string(pid_) + "/mem", O_RDONLY);
  }

 private:
  void on_new_process(const TracedProcess& /*child*/) override {}
  void on_new_thread(const TracedThread& /*thread*/) override {}
  void on_exec(const TracedProcess& /*process*/) override {}
  ExitDecision on_exit_stop(const TracedProcess& /*p*/, const TracedThread& /*t*/) override {
    return ExitDecision::kRelease;
  }
  void on_process_gone(pid_t /*pid*/, int /*wait_status*/) override {}

  std::string path_;
  Board* board_ = nullptr;
  pid_t pid_ = 0;
  const std::atomic<bool> cancelled_ = false;
  TraceTree tree_;
  GroupCapture capture_;
  GroupImage image_;
};

// Pages of the victim, kept between replicas.
struct Copy : PageSink {
  explicit Copy(StagingArea& area) : staging(area) {}
  std::span<uint8_t> reserve(uint64_t bytes) override { return staging.reserve(bytes); }
  [[nodiscard]] uint64_t chunk_bytes_max() const override { return staging.chunk_bytes_max(); }
  uint64_t keep(uint64_t used) override { return staging.keep(used); }
  void add(const PageRun& run) override { runs.runs.push_back(run); }
  StagingArea& staging;
  PageRunList runs;
};

ReceivedMessage answer_of(Channel& channel, MessageType type) {
  std::optional<ReceivedMessage> message = channel.receive(kAnswerMs);
  CHECK(message.has_value());
  if (message->type == MessageType::kFailed) {
    testing::note("keeper: " + decode<FailedMessage>(message->body).reason);
  }
  CHECK(message->type == type);
  return std::move(*message);
}

// Everything of the victim staged once; any number of keepers can be fed from it.
class Stage {
 public:
  explicit Stage(Victim& victim) : victim_(victim), copy_(staging_) {
    victim.capture().copy_frozen(victim.image(), copy_);
    runs_ = staging_.put(copy_.runs);
    victim.image().epoch = 1;
    image_ = staging_.put(victim.image());
    LazyRangeList lazy;
    lazy.ranges.push_back({victim.group_pid(), kBase, kBase + kPages * kPageSize});
    lazy_ = staging_.put(lazy);
  }

  void bring_to_epoch(Channel& channel) const {
    channel.send(MessageType::kBuild, ImageMessage{1, image_});
    answer_of(channel, MessageType::kBuilt);
    channel.send(MessageType::kPages, PagesMessage{1, runs_});
    answer_of(channel, MessageType::kPagesDone);
    channel.send(MessageType::kCommit, ImageMessage{1, image_});
    answer_of(channel, MessageType::kCommitted);
  }
  // Everything lazy from `memory`; invalid: nothing is.
  void send_promotion(Channel& channel, const UniqueFd& memory) const {
    const bool lazy = memory.valid();
    if (lazy) {
      const int fd = memory.get();
      channel.send(
          MessageType::kDescriptors,
          DescriptorsMessage{.epoch = 1, .positions = {}, .memory_pids = {victim_.group_pid()}},
          {&fd, 1});
    }
    channel.send(MessageType::kPromote, PromoteMessage{.epoch = 1,
                                                       .exact = true,
                                                       .keep_files = true,
                                                       .runs = {},
                                                       .lazy = lazy ? lazy_ : StagedBytes{}});
  }

  // Of an epoch that then is not promoted.
  void send_state_of_next_epoch(Channel& channel) {
    GroupImage next = victim_.image();
    next.epoch = 2;
    channel.send(MessageType::kLastState, ImageMessage{2, staging_.put(next)});
    const UniqueFd file = victim_.memory();
    const int fd = file.get();
    channel.send(MessageType::kDescriptors,
                 DescriptorsMessage{.epoch = 2, .positions = {1'000'000}, .memory_pids = {}},
                 {&fd, 1});
  }

  StagingArea& staging() { return staging_; }
  [[nodiscard]] StagedBytes image() const { return image_; }

 private:
  Victim& victim_;
  StagingArea staging_{{}};
  Copy copy_;
  StagedBytes runs_, image_, lazy_;
};

// ---- tests

TEST(keeper_starts_and_ends_with_its_tracer) {
  need_keeper();
  StagingArea staging({});
  std::optional<KeeperProcess> keeper = spawn(staging);
  for (const std::string& note : keeper->notes) testing::note(note);
  const std::string status = ask("status");
  CHECK(has(status, "\"state\":\"standby\"") && has(status, "\"exited\":false"));
  struct stat facts {};
  CHECK(::stat(control_path().c_str(), &facts) == 0 && (facts.st_mode & 0777) == 0600);
  const auto holder = read_proc("/proc/" + std::to_string(keeper->holder) + "/status");
  CHECK(holder && field_of(*holder, "PPid") != std::to_string(::getpid()));
  const auto inner = read_proc("/proc/" + std::to_string(keeper->keeper) + "/status");
  CHECK(inner && field_of(*inner, "NSpid") == std::to_string(keeper->keeper) + "\t1");
  const UniqueFd holder_pidfd = pidfd_of(keeper->holder);
  const UniqueFd pidfd = std::move(keeper->pidfd);
  keeper.reset();  // closes the channel
  CHECK(ends(pidfd) && ends(holder_pidfd));
  CHECK(::access(control_path().c_str(), F_OK) != 0);
}

TEST(keeper_and_holder_do_not_outlive_each_other_in_standby) {
  need_keeper();
  StagingArea staging({});
  for (const bool kill_holder : {false, true}) {
    KeeperProcess keeper = spawn(staging);
    const UniqueFd holder = pidfd_of(keeper.holder);
    CHECK(::kill(kill_holder ? keeper.holder : keeper.keeper, SIGKILL) == 0);
    CHECK(ends(keeper.pidfd) && ends(holder));
    while (keeper.channel.receive(1000)) {
    }
    CHECK(keeper.channel.closed());
  }
}

TEST(keeper_refuses_damage_and_says_so) {
  need_keeper();
  StagingArea staging({});
  const auto failure_after = [&](auto send) {
    KeeperProcess keeper = spawn(staging);
    send(keeper.channel);
    const ReceivedMessage answer = answer_of(keeper.channel, MessageType::kFailed);
    CHECK(ends(keeper.pidfd));
    return decode<FailedMessage>(answer.body).reason;
  };
  GroupImage empty;
  const StagedBytes image = staging.put(empty);
  StagedBytes damaged = image;
  damaged.crc ^= 1;
  CHECK(has(failure_after([&](Channel& c) {
              c.send(MessageType::kBuild, ImageMessage{0, damaged});
            }),
            "damaged"));
  StagedBytes outside = image;
  outside.offset = staging.memory_bytes() + 4096;
  CHECK(has(failure_after([&](Channel& c) {
              c.send(MessageType::kBuild, ImageMessage{0, outside});
            }),
            "outside"));
  CHECK(has(failure_after([&](Channel& c) {
              c.send(MessageType::kBuild, ImageMessage{0, image});
            }),
            "no process"));
  CHECK(!failure_after([&](Channel& c) {
           c.send(MessageType::kPages, PagesMessage{0, image});
         }).empty());
  CHECK(!failure_after([&](Channel& c) { c.send(MessageType::kReady, Bytes{}); }).empty());
  CHECK(!failure_after([&](Channel& c) {
           const char byte = 'x';
           CHECK(::send(c.fd(), &byte, 1, 0) == 1);
         }).empty());
}

TEST(keeper_start_reports_why_it_failed) {
  need_keeper();
  StagingArea staging({});
  std::string reason;
  try {
    spawn_keeper({.executable = keeper_path(),
                  .name = "x",
                  .generation = 1,
                  .primary = 0,
                  .control_socket = "/nonexistent/socket",
                  .stdio = -1,
                  .stdio_path = {}},
                 staging);
  } catch (const KeeperLost& lost) {
    reason = lost.what();
  }
  CHECK(has(reason, "/nonexistent/socket"));
  bool no_executable = false;
  try {
    spawn_keeper({.executable = "/nonexistent/keeper",
                  .name = "x",
                  .generation = 1,
                  .primary = 0,
                  .control_socket = control_path(),
                  .stdio = -1,
                  .stdio_path = {}},
                 staging);
  } catch (const SysError& error) {
    no_executable = error.error() == ENOENT;
  }
  CHECK(no_executable);
}

TEST(keeper_lets_a_replica_run_and_outlives_its_tracer) {
  need_keeper();
  Victim victim;
  Stage stage(victim);
  std::optional<KeeperProcess> keeper = spawn(stage.staging());
  stage.bring_to_epoch(keeper->channel);
  const uint64_t rounds = victim.board().rounds;
  stage.send_promotion(keeper->channel, UniqueFd());
  const auto promoted =
      decode<PromotedMessage>(answer_of(keeper->channel, MessageType::kPromoted).body);
  CHECK_EQUAL(promoted.pid, victim.group_pid());
  const auto inner = read_proc("/proc/" + std::to_string(promoted.host_pid) + "/status");
  CHECK(inner && has(std::string(field_of(*inner, "NSpid").value_or("")),
                     "\t" + std::to_string(promoted.pid)));
  answer_of(keeper->channel, MessageType::kDrained);
  CHECK(within(5000, [&] { return victim.board().rounds > rounds; }));
  const UniqueFd pidfd = std::move(keeper->pidfd);
  keeper.reset();
  ::usleep(50'000);
  CHECK(has(ask("status"), "\"state\":\"promoted\""));
  victim.board().end = 7;
  const std::string ended = ask("wait");
  CHECK(has(ended, "\"state\":\"ended\"") && has(ended, "\"exited\":true") &&
        has(ended, "\"status\":1792"));
  CHECK(ends(pidfd));
  CHECK_EQUAL(victim.board().wrong.load(), 0u);
  testing::note("promoted in " + std::to_string(promoted.promote_us) + " us");
}

TEST(keeper_serves_missing_pages_until_drained) {
  need_keeper();
  Victim victim;
  Stage stage(victim);
  KeeperProcess keeper = spawn(stage.staging());
  stage.bring_to_epoch(keeper.channel);
  stage.send_promotion(keeper.channel, victim.memory());
  const auto promoted =
      decode<PromotedMessage>(answer_of(keeper.channel, MessageType::kPromoted).body);
  const auto drained =
      decode<DrainedMessage>(answer_of(keeper.channel, MessageType::kDrained).body);
  CHECK_EQUAL(drained.pages, kPages);
  const uint64_t rounds = victim.board().rounds;
  CHECK(within(5000, [&] { return victim.board().rounds > rounds + 100'000; }));
  CHECK_EQUAL(victim.board().wrong.load(), 0u);
  testing::note("promoted in " + std::to_string(promoted.promote_us) + " us, drained in " +
                std::to_string(drained.took_us) + " us");
  CHECK(has(ask("end"), "promoted"));
  CHECK(has(ask("wait"), "\"state\":\"ended\""));
  CHECK(ends(keeper.pidfd));
}

TEST(a_killed_keeper_or_holder_never_makes_a_missing_page_read_zero) {
  need_keeper();
  Victim victim;
  Stage stage(victim);
  std::mt19937 random(42);
  // Each of them takes seconds on an emulated machine.
  const uint64_t tries = 200 / static_cast<uint64_t>(testing::slowness());
  uint64_t while_lazy = 0;
  for (uint64_t i = 0; i < tries; ++i) {
    KeeperProcess keeper = spawn(stage.staging(), i + 1);
    stage.bring_to_epoch(keeper.channel);
    stage.send_promotion(keeper.channel, victim.memory());
    answer_of(keeper.channel, MessageType::kPromoted);
    ::usleep(random() % 20'000);
    const bool kill_holder = i % 4 == 3;
    if (!keeper.channel.receive(0)) ++while_lazy;
    // Without its holder a keeper serves on.
    if (kill_holder) {
      CHECK(::kill(keeper.holder, SIGKILL) == 0);
      answer_of(keeper.channel, MessageType::kDrained);
      CHECK(has(ask("status"), "\"state\":\"promoted\""));
    }
    CHECK(::kill(keeper.keeper, SIGKILL) == 0);
    CHECK(ends(keeper.pidfd));
    CHECK_EQUAL(victim.board().wrong.load(), 0u);
  }
  testing::note(std::to_string(while_lazy) + " of " + std::to_string(tries) +
                " kills came while pages were missing");
  CHECK(while_lazy > tries / 4);
}

// The memory of the last epoch may be gone when its state has been sent already.
TEST(keeper_promotes_the_committed_epoch_after_the_state_of_another) {
  need_keeper();
  Victim victim;
  Stage stage(victim);
  KeeperProcess keeper = spawn(stage.staging());
  stage.bring_to_epoch(keeper.channel);
  stage.send_state_of_next_epoch(keeper.channel);
  stage.send_promotion(keeper.channel, victim.memory());
  const auto promoted =
      decode<PromotedMessage>(answer_of(keeper.channel, MessageType::kPromoted).body);
  CHECK_EQUAL(promoted.epoch, 1u);
  answer_of(keeper.channel, MessageType::kDrained);
  const uint64_t rounds = victim.board().rounds;
  CHECK(within(5000, [&] { return victim.board().rounds > rounds; }));
  CHECK_EQUAL(victim.board().wrong.load(), 0u);
  CHECK(has(ask("end"), "promoted"));
  CHECK(has(ask("wait"), "\"state\":\"ended\""));
  CHECK(ends(keeper.pidfd));
}

TEST(a_source_that_goes_away_kills_the_group) {
  need_keeper();
  Victim victim;
  Stage stage(victim);
  const pid_t gone = ::fork();
  if (gone == 0) ::_exit(::pause());
  const UniqueFd memory = open_path("/proc/" + std::to_string(gone) + "/mem", O_RDONLY);
  ::kill(gone, SIGKILL);
  ::waitpid(gone, nullptr, 0);
  KeeperProcess keeper = spawn(stage.staging());
  stage.bring_to_epoch(keeper.channel);
  stage.send_promotion(keeper.channel, memory);
  // The loss is seen before or after the replica runs; nothing says kPromoted then kDrained.
  std::optional<ReceivedMessage> answer = keeper.channel.receive(kAnswerMs);
  if (answer && answer->type == MessageType::kPromoted) answer = keeper.channel.receive(kAnswerMs);
  CHECK(answer && answer->type == MessageType::kFailed);
  testing::note(decode<FailedMessage>(answer->body).reason);
  (void)ask("wait");
  CHECK(ends(keeper.pidfd));
  CHECK_EQUAL(victim.board().wrong.load(), 0u);
}

}  // namespace
}  // namespace replpage
