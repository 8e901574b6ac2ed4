#include "core/link/keeper_link.h"

#include <sys/socket.h>
#include <unistd.h>

#include <memory>
#include <string>

#include "core/base/clock.h"
#include "test/test.h"

namespace replpage {
namespace {

constexpr uint64_t kAnswerMs = 1500;

// The other end says what the test says.
class Scene {
 public:
  Scene() {
    int ends[2];
    CHECK(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) == 0);
    keeper = std::make_unique<Channel>(UniqueFd(ends[1]));
    link = std::make_unique<KeeperLink>(
        Channel(UniqueFd(ends[0])), UniqueFd(),
        KeeperLink::News{.promoted = [](const PromotedMessage&) {},
                         .drained = [this](const DrainedMessage&) { drained = true; },
                         .lost =
                             [this](const std::string& reason) {
                               testing::note(reason);
                               lost = true;
                             }},
        kAnswerMs);
  }
  ~Scene() { link.reset(); }
  Scene(const Scene&) = delete;
  Scene& operator=(const Scene&) = delete;

  void promote() { keeper->send(MessageType::kPromoted, PromotedMessage{}); }
  // For so long, in steps.
  void fetch(uint64_t ms, uint64_t pages_a_step) {
    for (const uint64_t ends = now_us() + ms * 1000; now_us() < ends && !lost; ::usleep(200'000)) {
      pages += pages_a_step;
      keeper->send(MessageType::kDraining, DrainingMessage{.pages = pages});
    }
  }
  void rest(uint64_t ms) const {
    for (const uint64_t ends = now_us() + ms * 1000; now_us() < ends && !lost; ::usleep(10'000)) {
    }
  }

  std::atomic<bool> drained = false, lost = false;
  uint64_t pages = 0;
  std::unique_ptr<Channel> keeper;
  std::unique_ptr<KeeperLink> link;
};

TEST(keeper_link_waits_while_pages_are_fetched) {
  Scene scene;
  scene.promote();
  scene.fetch(2 * kAnswerMs, 0);
  CHECK(!scene.lost);  // nobody waits
  scene.link->insist_on_drain();
  scene.fetch(3 * kAnswerMs, 5);
  CHECK(!scene.lost);
  scene.keeper->send(MessageType::kDrained, DrainedMessage{});
  scene.rest(2 * kAnswerMs);
  CHECK(scene.drained && !scene.lost);
}

TEST(keeper_link_gives_up_a_keeper_that_fetches_nothing) {
  Scene scene;
  scene.promote();
  scene.link->insist_on_drain();
  scene.fetch(kAnswerMs, 5);
  const uint64_t began = now_us();
  scene.fetch(10 * kAnswerMs, 0);  // alive, and of no use
  CHECK(scene.lost);
  CHECK(now_us() - began > kAnswerMs * 1000 / 2);
  Scene silent;
  silent.promote();
  silent.link->insist_on_drain();
  silent.rest(10 * kAnswerMs);
  CHECK(silent.lost);
}

TEST(keeper_link_stops_waiting_when_it_is_told_to) {
  Scene scene;
  scene.link->stop_waiting();
  const uint64_t began = now_us();
  bool thrown = false;
  try {
    scene.link->wait_reply(MessageType::kCommitted);
  } catch (const KeeperLost&) {
    thrown = true;
  }
  CHECK(thrown && !scene.lost);
  CHECK(now_us() - began < kAnswerMs * 1000);
}

}  // namespace
}  // namespace replpage
