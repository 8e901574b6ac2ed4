// The replicas of one group, by rank, and what is said to all of them.
//
//   building, joining -- first commit --> in sync -- lost, or too slow --> out -- joins --> joining
//   joining for a drill -- first commit --> drilling -- tried out, or lost --> gone
//
// A replica that is building hears the first copy. One that joins a group that runs hears every
// epoch as a part of its first copy until complete() says that it was given all there is; only then
// it gets an epoch to commit. One that is in sync holds every committed epoch and may be promoted;
// one that is out may not, and the next commit waits until that is recorded where it may be asked.
//
// What is sent here throws KeeperLost only when no replica is left to go on with.
#pragma once

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "core/link/keeper_link.h"
#include "core/link/keeper_process.h"
#include "core/link/replica_place.h"

namespace replpage {

enum class ReplicaState : uint8_t { kBuilding, kJoining, kInSync, kOut, kDrilling };

struct ReplicaView {
  std::string node;
  ReplicaState state{};
  uint64_t epoch = 0;  // committed last
  uint64_t resident_bytes = 0;
};

class ReplicaSet {
 public:
  // Called on threads of the links or the worker; must not block.
  struct News {
    std::function<void(PromotedMessage)> promoted;
    std::function<void(DrainedMessage)> drained;
    // There is none left to go on with, or the one that is being promoted is lost.
    std::function<void(std::string why)> lost;
    std::function<void(std::string node, std::string why)> out;
    std::function<void(std::string node, uint64_t epoch)> in_sync;
    // Of one that joined for a drill; lost on the way, it has a problem.
    std::function<void(std::string node, uint64_t epoch, DrilledMessage)> drilled;
  };

  // `answer_ms`: see KeeperLink. `holds_commits`: whether a commit waits until recorded() was
  // called for whoever is out.
  ReplicaSet(News news, uint64_t answer_ms, bool holds_commits);
  ~ReplicaSet();
  ReplicaSet(const ReplicaSet&) = delete;
  ReplicaSet& operator=(const ReplicaSet&) = delete;

  // ---- worker

  // One whose keeper has just been started; ranks as it is listed in `homes` of GroupOptions.
  void add(size_t rank, ReplicaHome home, KeeperProcess keeper, ReplicaState state);
  // One that is joining, to be tried out for so long at most when it has an epoch.
  void add_drill(ReplicaHome home, KeeperProcess keeper, uint64_t run_us);

  // The first copy. Both wait until all that are building have done it.
  void build(const ImageMessage& image);
  void wait_pages_done();
  void send_pages(const PagesMessage& pages);

  // Before send_epoch(), which may not wait.
  void wait_room();
  // Until all hold the epoch that was sent, and who does not is recorded to be out.
  CommittedMessage wait_committed();

  // Why the group could not run where a replica in sync is on another node, as far as can be seen
  // there (a port in use). Empty: nothing was found, or nobody could look.
  std::string why_not_there(const std::string& node);

  // As the replica in sync on that node has them, between two epochs: see HashesMessage. Empty: it
  // is not to be had.
  std::vector<uint32_t> hashes_of(const std::string& node, const HashMessage& pages);

  // Whoever is joining has been given everything with the epochs so far.
  void complete();
  [[nodiscard]] bool has_joining() const;

  // ---- tracer thread

  void send_epoch(const PagesMessage& pages, const ImageMessage& image);

  // The one that a death or an order promotes: that on `node` if one is named, else the one here,
  // else the first by rank. From then on nothing is said to the others. False: none is in sync.
  bool choose_successor(const std::string* node = nullptr);
  // Throws KeeperLost when none was chosen.
  [[nodiscard]] KeeperLink& successor() const;
  [[nodiscard]] bool successor_is_here() const;
  [[nodiscard]] std::string successor_node() const;

  // ---- any thread

  // That the replica on `node` is out.
  void recorded(const std::string& node);
  // The one on that node is not to be relied on.
  void leave_out(const std::string& node, const std::string& why);
  // See KeeperLink, of all.
  void stop_waiting();
  // The keeper of this machine; null: there is none.
  [[nodiscard]] std::shared_ptr<KeeperLink> here() const;
  [[nodiscard]] pid_t holder_here() const;
  [[nodiscard]] std::vector<ReplicaView> views() const;

  // ---- at the end of the group; worker

  // See KeeperLink::insist_on_drain, of the successor.
  void insist_on_drain();
  // Hangs up on all; `drop`: their replicas are never promoted.
  void end(bool drop);

 private:
  enum class Owes : uint8_t { kNothing, kPart, kCommit };
  struct Member {
    size_t id = 0, rank = 0;
    ReplicaHome home;
    ReplicaState state{};
    bool complete = true;        // not so: it lacks what was there when it joined
    Owes owes = Owes::kNothing;  // of the epoch that was sent
    bool recorded = false;       // that it is out
    uint64_t drill_us = 0;       // not 0: it joined for a drill
    uint64_t epoch = 0, resident_bytes = 0;
    pid_t holder = 0;
    std::shared_ptr<KeeperLink> link;
  };
  using Members = std::vector<std::shared_ptr<Member>>;

  [[nodiscard]] Members those(std::initializer_list<ReplicaState> states) const;
  [[nodiscard]] Members serving() const;
  template <class Say>
  void with(const Members& members, Say say);
  [[nodiscard]] uint64_t limit_ms() const;
  [[nodiscard]] bool is_drill(size_t id) const;
  void take_out(size_t id, const std::string& why);
  void hang_up_on_outs();
  void wait_recorded();
  void insert(std::shared_ptr<Member> member, KeeperProcess keeper);
  void on_drilled(size_t id, DrilledMessage message);
  void note_committed(Member& member, const CommittedMessage& committed);

  const News news_;
  const uint64_t answer_ms_;
  const bool holds_commits_;
  mutable std::mutex mutex_;
  std::condition_variable recorded_;
  Members members_;  // by rank
  size_t last_id_ = 0;
  bool waits_ = true;
  std::shared_ptr<Member> successor_;  // of the tracer thread
};

}  // namespace replpage
