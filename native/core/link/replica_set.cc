#include "core/link/replica_set.h"

#include <algorithm>
#include <exception>
#include <utility>

#include "core/link/keeper_lost.h"

namespace replpage {
namespace {

// One that has not answered after so long is out, as long as there are others.
constexpr uint64_t kSlowMs = 10'000;

constexpr const char* kNoneLeft = "no replica is left";

}  // namespace

ReplicaSet::ReplicaSet(News news, uint64_t answer_ms, bool holds_commits)
    : news_(std::move(news)), answer_ms_(answer_ms), holds_commits_(holds_commits) {}

ReplicaSet::~ReplicaSet() { end(false); }

void ReplicaSet::add(size_t rank, ReplicaHome home, KeeperProcess keeper, ReplicaState state) {
  auto member = std::make_shared<Member>();
  member->rank = rank;
  member->home = std::move(home);
  member->state = state;
  member->complete = state != ReplicaState::kJoining;
  insert(std::move(member), std::move(keeper));
}

void ReplicaSet::add_drill(ReplicaHome home, KeeperProcess keeper, uint64_t run_us) {
  auto member = std::make_shared<Member>();
  member->rank = SIZE_MAX;
  member->home = std::move(home);
  member->state = ReplicaState::kJoining;
  member->complete = false;
  member->drill_us = run_us;
  insert(std::move(member), std::move(keeper));
}

void ReplicaSet::insert(std::shared_ptr<Member> member, KeeperProcess keeper) {
  member->holder = keeper.holder;
  hang_up_on_outs();
  Members former;  // destroyed without the lock
  const std::lock_guard lock(mutex_);
  member->id = ++last_id_;
  const auto is_former = [&](const auto& other) {
    // A commit still waits for who is out and not recorded to be.
    return member->drill_us == 0 && other->state == ReplicaState::kOut &&
           (other->recorded || !holds_commits_) && other->home.node == member->home.node;
  };
  std::ranges::copy_if(members_, std::back_inserter(former), is_former);
  std::erase_if(members_, is_former);
  const auto after =
      std::ranges::find_if(members_, [&](const auto& other) { return other->rank > member->rank; });
  members_.insert(after, member);
  const size_t id = member->id;
  member->link = std::make_shared<KeeperLink>(
      std::move(keeper.channel), std::move(keeper.pidfd),
      KeeperLink::News{
          .promoted = news_.promoted,
          .drained = news_.drained,
          .drilled = [this, id](DrilledMessage message) { on_drilled(id, std::move(message)); },
          .lost = [this, id](std::string why) { take_out(id, std::move(why)); }},
      answer_ms_);
  if (!waits_) member->link->stop_waiting();
}

// ---- what is said

ReplicaSet::Members ReplicaSet::those(std::initializer_list<ReplicaState> states) const {
  const std::lock_guard lock(mutex_);
  Members found;
  std::ranges::copy_if(members_, std::back_inserter(found), [&](const auto& member) {
    return std::ranges::find(states, member->state) != states.end();
  });
  return found;
}

ReplicaSet::Members ReplicaSet::serving() const {
  return those({ReplicaState::kBuilding, ReplicaState::kInSync});
}

// Whoever cannot be spoken with is out, and the rest goes on.
template <class Say>
void ReplicaSet::with(const Members& members, Say say) {
  for (const auto& member : members) {
    try {
      say(*member);
    } catch (const std::exception& error) {
      {
        const std::lock_guard lock(mutex_);
        if (!waits_) throw;
      }
      take_out(member->id, error.what());
      if (serving().empty()) throw;
    }
  }
  if (serving().empty()) throw KeeperLost(kNoneLeft);
}

uint64_t ReplicaSet::limit_ms() const { return serving().size() > 1 ? kSlowMs : UINT64_MAX; }

void ReplicaSet::build(const ImageMessage& image) {
  const Members building = those({ReplicaState::kBuilding});
  with(building, [&](Member& member) { member.link->send(MessageType::kBuild, image); });
  with(building, [&](Member& member) { member.link->wait_reply(MessageType::kBuilt, limit_ms()); });
  hang_up_on_outs();
}

void ReplicaSet::send_pages(const PagesMessage& pages) {
  with(those({ReplicaState::kBuilding}),
       [&](Member& member) { member.link->send(MessageType::kPages, pages); });
}

void ReplicaSet::wait_pages_done() {
  with(those({ReplicaState::kBuilding}),
       [&](Member& member) { member.link->wait_reply(MessageType::kPagesDone, limit_ms()); });
  hang_up_on_outs();
}

void ReplicaSet::wait_room() {
  with(those({ReplicaState::kBuilding, ReplicaState::kJoining, ReplicaState::kInSync}),
       [](Member& member) { member.link->wait_room(); });
}

void ReplicaSet::send_epoch(const PagesMessage& pages, const ImageMessage& image) {
  with(those({ReplicaState::kBuilding, ReplicaState::kJoining, ReplicaState::kInSync}),
       [&](Member& member) {
         if (member.complete) {
           member.link->send(MessageType::kStage, pages);
           member.link->send(MessageType::kCommit, image);
           member.owes = Owes::kCommit;
         } else {
           member.link->send(MessageType::kBuild, image);
           member.link->send(MessageType::kPages, pages);
           member.owes = Owes::kPart;
         }
       });
}

CommittedMessage ReplicaSet::wait_committed() {
  CommittedMessage first;
  with(those({ReplicaState::kBuilding, ReplicaState::kJoining, ReplicaState::kInSync}),
       [&](Member& member) {
         const Owes owes = std::exchange(member.owes, Owes::kNothing);
         if (owes == Owes::kPart) {
           member.link->wait_reply(MessageType::kBuilt, kSlowMs);
           member.link->wait_reply(MessageType::kPagesDone, kSlowMs);
         }
         if (owes != Owes::kCommit) return;
         const bool joins = member.state == ReplicaState::kJoining;
         const auto committed = member.link->wait_reply_as<CommittedMessage>(
             MessageType::kCommitted, joins ? kSlowMs : limit_ms());
         note_committed(member, committed);
         if (first.epoch == 0) first = committed;
         first.apply_us = std::max(first.apply_us, committed.apply_us);
       });
  hang_up_on_outs();
  wait_recorded();
  return first;
}

void ReplicaSet::note_committed(Member& member, const CommittedMessage& committed) {
  bool joined = false;
  {
    const std::lock_guard lock(mutex_);
    if (member.state == ReplicaState::kOut) return;
    joined = member.state == ReplicaState::kJoining;
    member.state = member.drill_us != 0 ? ReplicaState::kDrilling : ReplicaState::kInSync;
    member.epoch = committed.epoch;
    member.resident_bytes = committed.resident_bytes;
  }
  if (member.drill_us != 0) {
    member.link->send(MessageType::kDrill, DrillMessage{.run_us = member.drill_us});
  } else if (joined) {
    news_.in_sync(member.home.node, committed.epoch);
  }
}

std::string ReplicaSet::why_not_there(const std::string& node) {
  std::string problem;
  for (const auto& member : those({ReplicaState::kInSync})) {
    if (member->home.node != node || !member->home.place) continue;
    with({member}, [&](Member& there) {
      there.link->send_empty(MessageType::kRehearse);
      problem =
          there.link->wait_reply_as<RehearsedMessage>(MessageType::kRehearsed, kSlowMs).problem;
    });
  }
  return problem;
}

std::vector<uint32_t> ReplicaSet::hashes_of(const std::string& node, const HashMessage& pages) {
  std::vector<uint32_t> hashes;
  for (const auto& member : those({ReplicaState::kInSync})) {
    if (member->home.node != node) continue;
    with({member}, [&](Member& there) {
      there.link->send(MessageType::kHash, pages);
      hashes = there.link->wait_reply_as<HashesMessage>(MessageType::kHashes, kSlowMs).hashes;
    });
  }
  return hashes;
}

void ReplicaSet::complete() {
  for (const auto& member : those({ReplicaState::kJoining})) member->complete = true;
}

bool ReplicaSet::has_joining() const { return !those({ReplicaState::kJoining}).empty(); }

// ---- who is out

// It is over with the answer; hang_up_on_outs() does the rest.
void ReplicaSet::on_drilled(size_t id, DrilledMessage message) {
  std::string node;
  uint64_t epoch = 0;
  {
    const std::lock_guard lock(mutex_);
    const auto found = std::ranges::find(members_, id, [](const auto& one) { return one->id; });
    if (found == members_.end() || (*found)->state == ReplicaState::kOut) return;
    (*found)->state = ReplicaState::kOut;
    (*found)->recorded = true;
    node = (*found)->home.node;
    epoch = (*found)->epoch;
  }
  news_.drilled(node, epoch, std::move(message));
}

bool ReplicaSet::is_drill(size_t id) const {
  const std::lock_guard lock(mutex_);
  const auto found = std::ranges::find(members_, id, [](const auto& one) { return one->id; });
  return found != members_.end() && (*found)->drill_us != 0;
}

void ReplicaSet::take_out(size_t id, const std::string& why) {
  if (is_drill(id)) return on_drilled(id, {.problem = why});
  std::string node;
  bool is_last = false;
  {
    const std::lock_guard lock(mutex_);
    const auto found = std::ranges::find(members_, id, [](const auto& one) { return one->id; });
    if (found == members_.end() || (*found)->state == ReplicaState::kOut) return;
    (*found)->state = ReplicaState::kOut;
    node = (*found)->home.node;
    is_last = std::ranges::none_of(members_, [](const auto& member) {
      return member->state == ReplicaState::kBuilding || member->state == ReplicaState::kInSync;
    });
    if (successor_) {
      if (*found != successor_) return;  // nobody asks for it any more
      is_last = true;
    }
  }
  if (is_last) {
    news_.lost(why);
  } else {
    news_.out(node, why);
  }
}

// They may read the staging area, which changes next.
void ReplicaSet::hang_up_on_outs() {
  for (const auto& member : those({ReplicaState::kOut})) {
    std::shared_ptr<KeeperLink> link;
    {
      const std::lock_guard lock(mutex_);
      if (member == successor_) continue;
      link = std::exchange(member->link, nullptr);
    }
    link.reset();
    if (member->home.place) member->home.place->end();
  }
  const std::lock_guard lock(mutex_);
  std::erase_if(members_, [](const auto& member) {
    return member->drill_us != 0 && member->state == ReplicaState::kOut;
  });
}

void ReplicaSet::wait_recorded() {
  if (!holds_commits_) return;
  std::unique_lock lock(mutex_);
  recorded_.wait(lock, [this] {
    return !waits_ || std::ranges::all_of(members_, [](const auto& member) {
      return member->state != ReplicaState::kOut || member->recorded;
    });
  });
}

void ReplicaSet::recorded(const std::string& node) {
  const std::lock_guard lock(mutex_);
  for (const auto& member : members_) {
    if (member->home.node == node && member->state == ReplicaState::kOut) member->recorded = true;
  }
  recorded_.notify_all();
}

// ---- who comes next

bool ReplicaSet::choose_successor(const std::string* node) {
  const std::lock_guard lock(mutex_);
  const auto can = [](const auto& member) {
    return member->state == ReplicaState::kInSync && member->link != nullptr;
  };
  const auto is_wanted = [&](const auto& member) {
    return can(member) &&
           (node == nullptr ? member->home.place == nullptr : member->home.node == *node);
  };
  auto chosen = std::ranges::find_if(members_, is_wanted);
  if (chosen == members_.end() && node == nullptr) chosen = std::ranges::find_if(members_, can);
  if (chosen == members_.end()) return false;
  successor_ = *chosen;
  return true;
}

void ReplicaSet::leave_out(const std::string& node, const std::string& why) {
  for (const auto& member : those({ReplicaState::kInSync})) {
    if (member->home.node == node) take_out(member->id, why);
  }
}

KeeperLink& ReplicaSet::successor() const {
  if (!successor_ || !successor_->link) throw KeeperLost(kNoneLeft);
  return *successor_->link;
}

bool ReplicaSet::successor_is_here() const { return successor_ && !successor_->home.place; }

std::string ReplicaSet::successor_node() const {
  return successor_ ? successor_->home.node : std::string();
}

// ---- any thread

void ReplicaSet::stop_waiting() {
  const std::lock_guard lock(mutex_);
  waits_ = false;
  recorded_.notify_all();
  for (const auto& member : members_) {
    if (member->link) member->link->stop_waiting();
  }
}

std::shared_ptr<KeeperLink> ReplicaSet::here() const {
  for (const auto& member : serving()) {
    if (!member->home.place) return member->link;
  }
  return nullptr;
}

pid_t ReplicaSet::holder_here() const {
  const std::lock_guard lock(mutex_);
  for (const auto& member : members_) {
    if (!member->home.place && member->drill_us == 0) return member->holder;
  }
  return 0;
}

std::vector<ReplicaView> ReplicaSet::views() const {
  const std::lock_guard lock(mutex_);
  std::vector<ReplicaView> views;
  for (const auto& member : members_) {
    if (member->drill_us != 0) continue;
    views.push_back({.node = member->home.node,
                     .state = member->state,
                     .epoch = member->epoch,
                     .resident_bytes = member->resident_bytes});
  }
  return views;
}

// ---- the end

void ReplicaSet::insist_on_drain() {
  if (successor_ && successor_->link) successor_->link->insist_on_drain();
}

void ReplicaSet::end(bool drop) {
  Members members;
  {
    const std::lock_guard lock(mutex_);
    members.swap(members_);
  }
  for (const auto& member : members) {
    if (member->link && drop) member->link->drop_replica();
    member->link.reset();
    if (member->home.place) member->home.place->end();
  }
}

}  // namespace replpage
