// What tests of the keeper share: one is started and asked, and a victim is captured once, from
// which any number of keepers can be fed.
#pragma once

#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include "core/base/clock.h"
#include "core/base/procfs.h"
#include "core/base/sys_error.h"
#include "core/group/group_capture.h"
#include "core/link/keeper_process.h"
#include "core/trace/trace_tree.h"
#include "test/test.h"

namespace replpage::keeper_testing {

inline const int kAnswerMs = 20'000 * testing::slowness();

// REPLPAGE_KEEPER, else beside this test.
inline std::string keeper_path() {
  if (const char* path = std::getenv("REPLPAGE_KEEPER")) return path;
  const std::string self = read_link("/proc/self/exe").value_or("");
  return self.substr(0, self.rfind('/')) + "/replpage-keeper";
}

inline void need_keeper() {
  if (::access(keeper_path().c_str(), X_OK) != 0) SKIP("replpage-keeper is not built");
  if (::geteuid() != 0) SKIP("needs root");
}

// Each keeper has a socket of its own, as in a daemon: a holder that ends removes its socket's
// name.
inline int keepers = 0;

inline std::string control_path() {
  return "/tmp/replpage-keeper-test." + std::to_string(::getpid()) + "." + std::to_string(keepers);
}

inline KeeperProcess spawn(const StagingArea& staging, uint64_t generation = 1,
                           const PrimaryClocks& clocks = {}) {
  ++keepers;
  return spawn_keeper({.executable = keeper_path(),
                       .name = "keeper-test-" + std::to_string(::getpid()),
                       .generation = generation,
                       .primary = clocks.machine.none() ? ::getpid() : 0,
                       .control_socket = control_path(),
                       .stdio = -1,
                       .stdio_path = {},
                       .clocks = clocks},
                      staging);
}

// "" when nobody listens.
inline std::string ask(const std::string& command) {
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

inline bool has(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

inline bool ends(const UniqueFd& pidfd, int timeout_ms = kAnswerMs) {
  pollfd item{.fd = pidfd.get(), .events = POLLIN, .revents = 0};
  return ::poll(&item, 1, timeout_ms) == 1;
}

inline UniqueFd pidfd_of(pid_t pid) {
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

inline constexpr uint64_t kPages = 16'384;
inline constexpr uint64_t kBase = 0x210000000000;

struct Board {
  std::atomic<uint64_t> rounds, wrong, buses;
  std::atomic<int> pid, end;
  std::atomic<int64_t> clock_ns, leap_ns;        // last reading, and largest step between two
  std::atomic<int64_t> deadline_ns, timer_ns;    // when a timer was to ring, and when it did
  std::atomic<uint64_t> bus_pages[kPages / 64];  // a bit for each page that raised SIGBUS
};
inline constexpr size_t kBoardBytes = 2 * kPageSize;
static_assert(sizeof(Board) <= kBoardBytes);

inline uint64_t value_at(uint64_t page) { return (page + 1) * 0x9E3779B97F4A7C15ull; }

inline sigjmp_buf bus_met;

inline constexpr int64_t kTimerNs = 3'000'000'000;

inline Board* timer_board = nullptr;

inline void set_timer(Board* board) {
  timer_board = board;
  ::signal(SIGRTMIN, [](int) { timer_board->timer_ns = static_cast<int64_t>(now_ns()); });
  sigevent event{};
  event.sigev_notify = SIGEV_SIGNAL;
  event.sigev_signo = SIGRTMIN;
  timer_t timer{};
  ::timer_create(CLOCK_MONOTONIC, &event, &timer);
  board->deadline_ns = static_cast<int64_t>(now_ns()) + kTimerNs;
  const itimerspec value{{0, 0},
                         {board->deadline_ns / 1'000'000'000, board->deadline_ns % 1'000'000'000}};
  ::timer_settime(timer, TIMER_ABSTIME, &value, nullptr);
}

inline void look_at_clock(Board* board) {
  const auto now = static_cast<int64_t>(now_ns());
  const int64_t step = now - board->clock_ns.exchange(now);
  if (step < 0) ++board->wrong;
  if (step > board->leap_ns) board->leap_ns = step;
}

// Runs in the victim and in every replica of it.
[[noreturn]] inline void victim_body(Board* board) {
  auto* memory = static_cast<volatile uint64_t*>(
      ::mmap(reinterpret_cast<void*>(kBase), kPages * kPageSize, PROT_READ | PROT_WRITE,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0));
  constexpr uint64_t kWords = kPageSize / sizeof(uint64_t);
  for (uint64_t page = 0; page < kPages; ++page) memory[page * kWords] = value_at(page);
  ::signal(SIGBUS, [](int) { ::siglongjmp(bus_met, 1); });
  board->clock_ns = static_cast<int64_t>(now_ns());
  set_timer(board);
  static volatile uint64_t state = 1;
  static volatile uint64_t page = 0;
  if (::sigsetjmp(bus_met, 1) != 0) {
    ++board->buses;
    board->bus_pages[page / 64] |= 1ull << page % 64;
  }
  for (;;) {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    page = (state >> 33) % kPages;
    if (memory[page * kWords] != value_at(page)) ++board->wrong;
    if (++board->rounds % 64 == 0) {
      board->pid = ::getpid();
      look_at_clock(board);
    }
    if (board->end != 0) ::_exit(board->end);
  }
}

inline Board* map_board(const std::string& path) {
  const UniqueFd file = open_path(path, O_RDWR);
  void* at = ::mmap(nullptr, kBoardBytes, PROT_READ | PROT_WRITE, MAP_SHARED, file.get(), 0);
  CHECK(at != MAP_FAILED);
  return static_cast<Board*>(at);
}

inline constexpr const char* kVictimName = "keeper-test-victim";

// A victim that runs by itself, and where its replicas tell how they fare.
class Program {
 public:
  // `executable`: this program, or a copy of it.
  explicit Program(const std::string& executable = "/proc/self/exe")
      : path_("/tmp/replpage-keeper-board." + std::to_string(::getpid())) {
    const UniqueFd file = open_path(path_, O_RDWR | O_CREAT | O_TRUNC, 0600);
    CHECK(::ftruncate(file.get(), kBoardBytes) == 0);
    board_ = map_board(path_);
    pid_ = ::fork();
    if (pid_ == 0) {
      ::syscall(SYS_close_range, 0, ~0u, 0);
      ::open("/dev/null", O_RDWR);
      ::execl(executable.c_str(), kVictimName, path_.c_str(), nullptr);
      ::_exit(127);
    }
    CHECK(runs());
  }
  ~Program() {
    board_->end = 1;
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
    ::munmap(board_, kBoardBytes);
    ::unlink(path_.c_str());
  }
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;

  Board& board() { return *board_; }
  [[nodiscard]] pid_t pid() const { return pid_; }
  [[nodiscard]] uint64_t wrong() const { return board_->wrong; }
  // Whether it, or a replica of it, goes on.
  [[nodiscard]] bool runs() const {
    const uint64_t before = board_->rounds;
    return within(10'000, [&] { return board_->rounds > before; });
  }

 private:
  std::string path_;
  Board* board_ = nullptr;
  pid_t pid_ = 0;
};

class Victim : private TraceObserver {
 public:
  explicit Victim(const std::string& executable = "/proc/self/exe")
      : program_(executable), tree_(*this), capture_(tree_, std::nullopt, {}, cancelled_) {
    tree_.seize(pid(), true);
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
    ::kill(pid(), SIGKILL);
    tree_.detach();
  }

  Board& board() { return program_.board(); }
  GroupImage& image() { return image_; }
  GroupCapture& capture() { return capture_; }
  [[nodiscard]] pid_t pid() const { return program_.pid(); }
  [[nodiscard]] int32_t group_pid() const { return image_.processes[0].pid; }
  [[nodiscard]] UniqueFd memory() const {
    return open_path("/proc/" + std::to_string(pid()) + "/mem", O_RDONLY);
  }

 private:
  void on_new_process(const TracedProcess& /*child*/) override {}
  void on_new_thread(const TracedThread& /*thread*/) override {}
  void on_exec(const TracedProcess& /*process*/) override {}
  ExitDecision on_exit_stop(const TracedProcess& /*p*/, const TracedThread& /*t*/) override {
    return ExitDecision::kRelease;
  }
  void on_process_gone(pid_t /*pid*/, int /*wait_status*/) override {}

  Program program_;
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

// The next message that is more than news of the drain, which come with the time.
inline std::optional<ReceivedMessage> next_of(Channel& channel) {
  std::optional<ReceivedMessage> message = channel.receive(kAnswerMs);
  while (message && message->type == MessageType::kDraining) message = channel.receive(kAnswerMs);
  return message;
}

inline ReceivedMessage answer_of(Channel& channel, MessageType type) {
  std::optional<ReceivedMessage> message = next_of(channel);
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
  void send_promotion(Channel& channel, const UniqueFd& memory, uint64_t epoch = 1) const {
    const bool lazy = memory.valid();
    if (lazy) {
      const int fd = memory.get();
      channel.send(
          MessageType::kDescriptors,
          DescriptorsMessage{.epoch = epoch, .positions = {}, .memory_pids = {victim_.group_pid()}},
          {&fd, 1});
    }
    channel.send(MessageType::kPromote, PromoteMessage{.epoch = epoch,
                                                       .exact = true,
                                                       .keep_files = true,
                                                       .runs = {},
                                                       .lazy = lazy ? lazy_ : StagedBytes{}});
  }

  // Of an epoch that then is not promoted.
  void send_state_of_next_epoch(Channel& channel) {
    channel.send(MessageType::kLastState, ImageMessage{2, image_of(2)});
    const UniqueFd file = victim_.memory();
    const int fd = file.get();
    channel.send(MessageType::kDescriptors,
                 DescriptorsMessage{.epoch = 2, .positions = {1'000'000}, .memory_pids = {}},
                 {&fd, 1});
  }

  // The same state, of another epoch.
  StagedBytes image_of(uint64_t epoch) {
    GroupImage next = victim_.image();
    next.epoch = epoch;
    return staging_.put(next);
  }

  StagingArea& staging() { return staging_; }
  [[nodiscard]] const std::vector<PageRun>& runs() const { return copy_.runs.runs; }
  [[nodiscard]] StagedBytes image() const { return image_; }

 private:
  Victim& victim_;
  StagingArea staging_{{}};
  Copy copy_;
  StagedBytes runs_, image_, lazy_;
};

}  // namespace replpage::keeper_testing
