// Replicas on another node: both ends in this process, joined over the loopback interface, with a
// real keeper at the end.
#include <linux/magic.h>
#include <netinet/in.h>
#include <sys/resource.h>
#include <sys/vfs.h>

#include <thread>

#include "core/base/clock.h"
#include "core/base/crc32c.h"
#include "core/peer/remote_keeper.h"
#include "core/peer/standby_host.h"
#include "core/session/group_session.h"
#include "test/keeper_fixture.h"
#include "test/peer_fixture.h"

using namespace replpage;                  // NOLINT
using namespace replpage::keeper_testing;  // NOLINT
using namespace replpage::peer_testing;    // NOLINT

namespace {

constexpr const char* kToken = "a token";

// What a replica's node hears of the replicas that it keeps.
struct Heard {
  std::atomic<uint64_t> epoch = 0;
  std::atomic<bool> opened = false, cut_off = false, promoted = false, ordered = false,
                    drained = false, lost = false;
  std::atomic<pid_t> host_pid = 0;

  StandbyEvents events() {
    return {.opened = [this](const std::vector<std::string>&) { opened = true; },
            .committed = [this](const CommittedMessage& message) { epoch = message.epoch; },
            .cut_off =
                [this](const std::string& why) {
                  testing::note("cut off: " + why);
                  cut_off = true;
                },
            .promoted =
                [this](const PromotedMessage& message, bool by_order) {
                  ordered = by_order;
                  host_pid = message.host_pid;
                  promoted = true;
                },
            .drained = [this](const DrainedMessage&) { drained = true; },
            .lost =
                [this](const std::string& why) {
                  testing::note("lost: " + why);
                  lost = true;
                }};
  }
};

class ReplicaNode {
 public:
  // `behind_ns`: its clocks, of a machine that was started later.
  explicit ReplicaNode(uint64_t silence_ms = 10'000, int64_t behind_ns = 0)
      : silence_ms_(silence_ms) {
    host_.emplace(StandbyHostOptions{.host = "127.0.0.1",
                                     .port = 0,
                                     .credentials = authority_.node(kReplicaNode),
                                     .clocks = [behind_ns] {
                                       ClockReadings clocks = read_clocks();
                                       clocks.monotonic_ns -= behind_ns;
                                       clocks.boottime_ns -= behind_ns;
                                       return clocks;
                                     }});
  }
  void expect(uint64_t generation, const std::string& token = kToken) {
    ++keepers;
    StandbyOptions options;
    options.name = "peer-test-" + std::to_string(::getpid());
    options.generation = generation;
    options.keeper_path = keeper_path();
    options.control_socket = control_path();
    options.spill_bytes_max = 0;
    options.silence_ms = silence_ms_;
    host_->expect(
        {.token = token, .node = kPrimaryNode, .options = options, .events = heard.events()});
  }
  [[nodiscard]] RemotePlace place(uint64_t generation, const std::string& token = kToken) const {
    return {.host = "127.0.0.1",
            .port = host_->port(),
            .node = kReplicaNode,
            .token = token,
            .group = "peer-test-" + std::to_string(::getpid()),
            .generation = generation,
            .credentials = authority_.node(kPrimaryNode)};
  }
  StandbyHost& host() { return *host_; }
  void end() { host_.reset(); }
  [[nodiscard]] const Authority& authority() const { return authority_; }

  Heard heard;

 private:
  const Authority authority_;
  const uint64_t silence_ms_;
  std::optional<StandbyHost> host_;
};

class Listener final : public GroupEvents {
 public:
  void on_progress(uint64_t /*bytes*/, uint64_t /*bytes_total*/) override {}
  void on_died(DeathCause /*cause*/, int /*signal*/, int /*status*/) override {}
  void on_promoted(const PromotionReport& report) override {
    if (!report.why_not_exact.empty()) testing::note("not exact: " + report.why_not_exact);
    promotion_us = report.death_to_run_us;
    exact = report.exact;
    promoted = true;
  }
  void on_drained(uint64_t /*pages*/, uint64_t /*took_us*/) override { drained = true; }
  void on_ended(const std::string& reason, int /*signal*/, int /*status*/) override {
    testing::note("ended: " + reason);
    ended = true;
  }
  void on_unprotected(const std::string& reason) override {
    testing::note("unprotected: " + reason);
    unprotected = true;
  }

  std::atomic<bool> exact = false, promoted = false, drained = false, ended = false,
                    unprotected = false;
  std::atomic<uint64_t> promotion_us = 0;
};

GroupOptions options_of(pid_t pid, uint64_t generation, std::shared_ptr<ReplicaPlace> place) {
  GroupOptions options;
  options.name = "peer-test-" + std::to_string(::getpid());
  options.generation = generation;
  options.spill_bytes_max = 0;
  options.freeze_deadline_us = 1'000'000;
  options.max_pause_us = 1'000'000;
  options.pid = pid;
  options.homes = {{.node = "other", .place = std::move(place)}};
  return options;
}

std::string why_not_open(RemotePlace place) {
  StagingArea staging({});
  RemoteKeeper remote(std::move(place));
  try {
    (void)remote.start(staging);
  } catch (const KeeperLost& lost) {
    return lost.what();
  }
  return "";
}

uint64_t own_cpu_us() {
  rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
  const auto us = [](const timeval& t) {
    return static_cast<uint64_t>(t.tv_sec) * 1'000'000 + static_cast<uint64_t>(t.tv_usec);
  };
  return us(usage.ru_utime) + us(usage.ru_stime);
}

bool lies_in_ram(const char* path) {
  struct statfs system {};
  CHECK(::statfs(path, &system) == 0);
  return system.f_type == TMPFS_MAGIC || system.f_type == RAMFS_MAGIC;
}

}  // namespace

TEST(peer_checksum_goes_on_where_another_ended) {
  const Bytes bytes{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11};
  const std::span<const uint8_t> all(bytes);
  CHECK_EQUAL(crc32c(all.subspan(3), crc32c(all.first(3))), crc32c(all));
}

TEST(peer_lets_in_only_the_node_that_is_expected) {
  need_keeper();
  ReplicaNode node;
  const RemotePlace right = node.place(1);
  const auto with = [&](auto change) {
    RemotePlace place = right;
    change(place);
    return why_not_open(std::move(place));
  };
  CHECK(has(why_not_open(right), "no such replica is expected"));
  node.expect(1);
  CHECK(has(with([](RemotePlace& p) { p.token = "another"; }), "no such replica is expected"));
  CHECK(has(with([&](RemotePlace& p) { p.credentials = node.authority().node(kReplicaNode); }),
            "no such replica is expected"));
  CHECK(has(with([](RemotePlace& p) { p.node = kPrimaryNode; }), "answers where another"));
  const Authority foreign;
  CHECK(!with([&](RemotePlace& p) { p.credentials = foreign.node(kPrimaryNode); }).empty());
  CHECK(!with([&](RemotePlace& p) {
           p.credentials = foreign.node(kPrimaryNode);
           p.credentials.ca = right.credentials.ca;
         }).empty());
  CHECK(!with([&](RemotePlace& p) {
           p.credentials = node.authority().node(kPrimaryNode, kCluster, -3600);
         }).empty());
  CHECK(!with([&](RemotePlace& p) {
           p.credentials = node.authority().node(kPrimaryNode, "ffffffffffffffff");
         }).empty());
  CHECK(has(with([](RemotePlace& p) { p.generation = 2; }), "another than was prepared for"));
  CHECK(within(kAnswerMs, [&] { return node.heard.lost.load(); }));
  CHECK(!node.heard.opened);
  CHECK(has(why_not_open(right), "no such replica is expected"));  // a token is good for once
  node.expect(1);
  CHECK_EQUAL(why_not_open(right), "");
}

TEST(peer_hangs_up_on_what_is_no_node) {
  ReplicaNode node;
  const UniqueFd plain = connect_to("127.0.0.1", node.host().port(), 1000);
  const std::string words(4096, 'x');
  CHECK(::send(plain.get(), words.data(), words.size(), MSG_NOSIGNAL) > 0);
  pollfd item{.fd = plain.get(), .events = POLLRDHUP, .revents = 0};
  CHECK(::poll(&item, 1, kAnswerMs) == 1);
}

TEST(peer_replica_is_built_and_runs) {
  need_keeper();
  Victim victim;
  Stage stage(victim);
  ReplicaNode node;
  node.expect(1);
  RemoteKeeper remote(node.place(1));
  KeeperProcess keeper = remote.start(stage.staging());
  stage.bring_to_epoch(keeper.channel);
  CHECK(within(kAnswerMs, [&] { return node.heard.epoch == 1; }));
  CHECK(remote.figures().bytes > kPages * kPageSize);
  const uint64_t rounds = victim.board().rounds;
  stage.send_promotion(keeper.channel, UniqueFd());
  const auto promoted =
      decode<PromotedMessage>(answer_of(keeper.channel, MessageType::kPromoted).body);
  CHECK_EQUAL(promoted.pid, victim.group_pid());
  answer_of(keeper.channel, MessageType::kDrained);
  CHECK(within(5000, [&] { return victim.board().rounds > rounds; }));
  CHECK(node.heard.promoted && node.heard.ordered);
  CHECK_EQUAL(victim.board().wrong, 0u);
  victim.board().end = 1;
}

TEST(peer_takes_over_what_is_killed_and_nothing_is_lost) {
  need_keeper();
  ReplicaNode node;
  const Program program;
  node.expect(1);
  Listener events;
  GroupSession session(options_of(program.pid(), 1, std::make_shared<RemoteKeeper>(node.place(1))),
                       events);
  CHECK(session.start().epoch > 0);
  for (int i = 0; i < 20; ++i) session.epoch();
  CHECK(within(kAnswerMs, [&] { return node.heard.epoch >= 21; }));
  ::kill(program.pid(), SIGKILL);
  CHECK(within(kAnswerMs, [&] { return events.drained || events.ended; }));
  CHECK(events.drained && events.exact && node.heard.ordered);
  testing::note("ran on the other node " + std::to_string(events.promotion_us) +
                " us after the death");
  CHECK(program.runs());
  session.stop();
  CHECK_EQUAL(program.wrong(), 0u);
}

TEST(peer_moves_what_is_ordered_to) {
  need_keeper();
  ReplicaNode node;
  const Program program;
  node.expect(1);
  Listener events;
  GroupSession session(options_of(program.pid(), 1, std::make_shared<RemoteKeeper>(node.place(1))),
                       events);
  session.start();
  CHECK(session.promote().exact);
  CHECK(within(kAnswerMs, [&] { return events.drained || events.ended; }));
  CHECK(node.heard.ordered && program.runs());
  CHECK_EQUAL(program.wrong(), 0u);
}

TEST(peer_replica_lives_by_the_clocks_of_its_primary) {
  need_keeper();
  constexpr int64_t kSecond = 1'000'000'000, kBehind = 1000 * kSecond;
  ReplicaNode node(10'000, kBehind);
  const Program program;
  node.expect(1);
  Listener events;
  RemotePlace place = node.place(1);
  place.primary = program.pid();
  GroupSession session(options_of(program.pid(), 1, std::make_shared<RemoteKeeper>(place)), events);
  session.start();
  CHECK(session.promote().exact);
  CHECK(within(kAnswerMs, [&] { return node.heard.promoted && (events.drained || events.ended); }));
  const ClockOffsets ahead = clock_offsets_of(node.heard.host_pid);
  // By as much as the greeting took, and never by less.
  for (const int64_t by : {ahead.monotonic_ns, ahead.boottime_ns}) {
    CHECK(by >= kBehind && by < kBehind + 10 * kSecond);
  }
  CHECK(program.runs());
  CHECK_EQUAL(program.wrong(), 0u);
}

TEST(peer_replica_stands_by_when_it_is_cut_off) {
  need_keeper();
  ReplicaNode node;
  const Program program;
  node.expect(1);
  Listener events;
  {
    GroupSession session(
        options_of(program.pid(), 1, std::make_shared<RemoteKeeper>(node.place(1))), events);
    session.start();
    session.epoch();
  }
  CHECK(within(kAnswerMs, [&] { return node.heard.cut_off.load(); }));
  CHECK(program.runs());  // the primary minds nothing
  ::kill(program.pid(), SIGKILL);
  // What it shares lies in a file, whose times do not tell where that is one in RAM.
  CHECK(node.host().promote(kToken, lies_in_ram("/tmp")));
  CHECK(within(kAnswerMs, [&] { return node.heard.promoted || node.heard.lost; }));
  CHECK(node.heard.promoted && !node.heard.ordered && node.heard.host_pid > 0);
  CHECK(program.runs());
  CHECK_EQUAL(program.wrong(), 0u);
  CHECK(!node.host().promote(kToken, false));
}

TEST(peer_primary_runs_on_when_its_replicas_node_goes) {
  need_keeper();
  ReplicaNode node;
  const Program program;
  node.expect(1);
  Listener events;
  GroupSession session(options_of(program.pid(), 1, std::make_shared<RemoteKeeper>(node.place(1))),
                       events);
  session.start();
  node.end();
  CHECK(within(kAnswerMs, [&] { return events.unprotected.load(); }));
  CHECK(node.heard.lost);
  CHECK(program.runs());
  session.stop();
  // Again, as a new replica of the next generation, of another node.
  ReplicaNode other;
  other.expect(2);
  GroupSession again(options_of(program.pid(), 2, std::make_shared<RemoteKeeper>(other.place(2))),
                     events);
  again.start();
  CHECK(other.heard.epoch > 0);
}

TEST(peer_silence_ends_a_connection_and_nothing_else) {
  need_keeper();
  ReplicaNode node(200);  // hears us once a second at most
  const Program program;
  node.expect(1);
  Listener events;
  GroupSession session(options_of(program.pid(), 1, std::make_shared<RemoteKeeper>(node.place(1))),
                       events);
  session.start();
  CHECK(within(kAnswerMs, [&] { return node.heard.cut_off && events.unprotected; }));
  CHECK(program.runs());
  CHECK(node.host().promote(kToken, true));
  CHECK(within(kAnswerMs, [&] { return node.heard.promoted.load(); }));
}

// How fast staged bytes go, both ends in this process.
TEST(peer_stream_figures) {
  constexpr uint64_t kBytes = 1ull << 30;
  constexpr uint64_t kRoom = 16ull << 20;
  const Authority authority;
  uint16_t port = 0;
  const UniqueFd listener = listen_at("127.0.0.1", 0, port);
  std::thread receiver([&] {
    pollfd item{.fd = listener.get(), .events = POLLIN, .revents = 0};
    (void)::poll(&item, 1, kAnswerMs);
    UniqueFd socket(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
    const TlsContext context(authority.node(kReplicaNode), TlsRole::kServer);
    FrameStream stream(TlsStream(std::move(socket), context, kAnswerMs));
    Bytes room(kRoom);
    stream.trust([&](uint64_t offset, uint64_t length) {
      return std::span<uint8_t>(room).subspan(offset, length);
    });
    for (uint64_t got = 0; got < kBytes;) got += stream.receive_within(kAnswerMs).length;
    stream.send(PeerFrameType::kAlive, {});
    stream.flush_within(kAnswerMs);
  });
  const TlsContext context(authority.node(kPrimaryNode), TlsRole::kClient);
  FrameStream stream(TlsStream(connect_to("127.0.0.1", port, 1000), context, kAnswerMs));
  Bytes data(kRoom, 0x5A);
  const uint64_t began = now_us();
  const uint64_t cpu = own_cpu_us();
  for (uint64_t at = 0; at < kBytes; at += kPeerChunkBytes) {
    const uint64_t offset = at % kRoom;
    stream.send_bytes(offset, std::span<const uint8_t>(data).subspan(offset, kPeerChunkBytes));
    stream.flush_within(kAnswerMs);
  }
  (void)stream.receive_within(kAnswerMs);
  const double seconds = static_cast<double>(now_us() - began) / 1e6;
  const double cpu_seconds = static_cast<double>(own_cpu_us() - cpu) / 1e6;
  receiver.join();
  testing::note(std::to_string(static_cast<double>(kBytes) / 1e9 / seconds) + " GB/s, " +
                std::to_string(cpu_seconds / (static_cast<double>(kBytes) / 1e9)) +
                " core-seconds per GB for both ends");
}
