#include "core/uffd/fault_server.h"

#include <sched.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <array>

#include "core/base/clock.h"
#include "core/base/sys_error.h"

namespace replpage {
namespace {

constexpr size_t kMessagesPerRead = 16;
// As much as a record of the page store has. Twice that is what counts as near.
constexpr uint64_t kAlongBytes = 32 * 1024;
// Of a page that was faulted on, its neighbours in an aligned window of up to this size follow.
constexpr uint64_t kAroundBytes = 2 * kAlongBytes;
// What is read along with a page that somebody waits for: more than any record of the page store.
constexpr uint64_t kUnitBytes = 64 * 1024;
// Where reading may wait for a device: pages that are waited for are read side by side, and the
// background is not held up by one of them.
constexpr size_t kReaders = 4;

// A program waits for every fault, so this thread goes first where the rights allow it. It sleeps
// between faults, and the kernel bounds real-time threads (sched(7)).
void go_first() {
  const sched_param lowest{.sched_priority = ::sched_get_priority_min(SCHED_RR)};
  (void)::sched_setscheduler(0, SCHED_RR, &lowest);
}

}  // namespace

class FaultServer::Precedence {
 public:
  explicit Precedence(FaultServer& server) : server_(server) {
    server_.precedence_.fetch_add(1);
    server_.mutex_.lock();
    server_.precedence_.fetch_sub(1);
  }
  ~Precedence() { server_.mutex_.unlock(); }
  Precedence(const Precedence&) = delete;
  Precedence& operator=(const Precedence&) = delete;

 private:
  FaultServer& server_;
};

void FaultServer::rest_a_while() {
  const timespec pause{.tv_sec = 0, .tv_nsec = kRetryNs};
  ::nanosleep(&pause, nullptr);
}

FaultServer::FaultServer(std::vector<Served> served, Sources sources, Events events,
                         const cpu_set_t& background)
    : sources_(std::move(sources)),
      events_(std::move(events)),
      background_(background),
      started_us_(now_us()) {
  wake_.reset(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!wake_.valid()) throw SysError::from_errno("eventfd of the fault server");
  for (Served& one : served) {
    memories_.push_back(
        std::make_shared<ServedMemory>(std::move(one.uffd), std::move(one.missing)));
  }
  // Signals are the owner's business.
  sigset_t all;
  sigset_t before;
  ::sigfillset(&all);
  ::pthread_sigmask(SIG_SETMASK, &all, &before);
  const bool waits = std::any_of(sources_.begin(), sources_.end(),
                                 [](const auto& source) { return source->waits_for_device(); });
  drains_ = waits ? kDrains : 1;
  serving_ = std::thread([this] { serve(); });
  // A promotion waits for us: whoever else works here is made by a thread that it does not wait
  // for.
  draining_ = std::thread([this, waits] {
    run_anywhere(::pthread_self());
    if (waits) start_helpers();
    drain(DrainRole::kAll);
  });
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

FaultServer::~FaultServer() {
  stop();
  for (const auto& source : sources_) source->give_up();
  serving_.join();
  draining_.join();
  for (std::thread& thread : helpers_) thread.join();
}

void FaultServer::start_helpers() {
  for (size_t i = 0; i < kReaders; ++i) helpers_.emplace_back([this] { read_wanted(); });
  for (size_t i = 1; i < kDrains; ++i) {
    helpers_.emplace_back([this] { drain(DrainRole::kStoreOnly); });
  }
}

void FaultServer::run_anywhere(pthread_t thread) const {
  (void)::pthread_setaffinity_np(thread, sizeof background_, &background_);
}

void FaultServer::stop() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wanted_more_.notify_all();
  released_.notify_all();
  wake();
}

void FaultServer::wake() const {
  const uint64_t one = 1;
  (void)::write(wake_.get(), &one, sizeof one);
}

void FaultServer::lose(const std::string& reason) {
  {
    const std::lock_guard lock(mutex_);
    if (stopping_) return;
    loss_ = reason;
  }
  stop();
  if (events_.lost) events_.lost(reason);
}

std::string FaultServer::loss() const {
  const std::lock_guard lock(mutex_);
  return loss_;
}

FaultServer::Figures FaultServer::figures() const {
  const std::lock_guard lock(mutex_);
  Figures figures;
  figures.pages_filled = pages_filled_;
  figures.faults = faults_;
  figures.pages_damaged = pages_damaged_;
  figures.released_us = released_us_;
  figures.drained_us = drained_us_;
  for (const auto& memory : memories_) {
    figures.passing_left += memory->missing().passing().pages();
    figures.stored_left += memory->missing().stored().pages();
    figures.pages_filled += memory->pages_filled();
  }
  const uint64_t now = now_us();
  const auto count = [&](const Wanted& wanted) {
    ++figures.waiting;
    figures.waiting_us = std::max(figures.waiting_us, now - wanted.since_us);
  };
  std::for_each(wanted_.begin(), wanted_.end(), count);
  std::for_each(being_read_.begin(), being_read_.end(), count);
  for (const auto& source : sources_) {
    if (figures.trouble.empty()) figures.trouble = source->trouble();
  }
  return figures;
}

// ---- faults and events

void FaultServer::serve() {
  ::pthread_setname_np(::pthread_self(), "fault-server");
  go_first();
  std::vector<pollfd> items;
  try {
    while (!stopping_) {
      const Memories memories = list_polled(items);
      if (memories.empty()) return;
      if (!wait_for_faults(items)) read_around();
      for (size_t i = 0; i < memories.size(); ++i) {
        if (items[i].revents != 0) read_messages(memories[i]);
      }
      if (!retry_) continue;
      retry_ = false;
      for (const auto& memory : memories) answer_faults(memory);
    }
  } catch (const std::exception& error) {
    lose(error.what());
  }
}

FaultServer::Memories FaultServer::list_polled(std::vector<pollfd>& items) {
  const Precedence lock(*this);
  items.clear();
  for (const auto& memory : memories_) {
    items.push_back({.fd = memory->uffd().fd(), .events = POLLIN, .revents = 0});
  }
  return memories_;
}

// False: nothing came, and neighbours of the last page may be fetched.
bool FaultServer::wait_for_faults(std::vector<pollfd>& items) {
  items.push_back({.fd = wake_.get(), .events = POLLIN, .revents = 0});
  timespec limit{.tv_sec = 0, .tv_nsec = retry_ ? kRetryNs : 0};
  const bool for_ever = !retry_ && !around_;
  const int ready = ::ppoll(items.data(), items.size(), for_ever ? nullptr : &limit, nullptr);
  if (ready < 0 && errno != EINTR) throw SysError::from_errno("poll of the userfaultfds");
  uint64_t count = 0;
  if (ready > 0 && items.back().revents != 0) (void)::read(wake_.get(), &count, sizeof count);
  return ready > 0;
}

void FaultServer::read_messages(const std::shared_ptr<ServedMemory>& memory) {
  // Held from before an event is read until it has taken effect: see ServedMemory.
  {
    const Precedence lock(*this);
    if (!memory->uffd().valid()) return;
    std::array<uffd_msg, kMessagesPerRead> messages{};
    size_t count = 0;
    do {
      count = memory->uffd().read(messages);
      for (auto& child : memory->take({messages.data(), count})) {
        memories_.push_back(std::move(child));
      }
    } while (count == messages.size());
  }
  answer_faults(memory);
}

void FaultServer::answer_faults(const std::shared_ptr<ServedMemory>& memory) {
  const Precedence lock(*this);
  std::vector<uint64_t>& faults = memory->faults();
  size_t left = 0;
  for (const uint64_t page : faults) {
    if (!memory->uffd().valid()) break;
    // Whoever jumps about gains nothing from neighbours, and would wait for them at the next fault.
    const uint64_t distance = std::max(page, last_fault_) - std::min(page, last_fault_);
    const bool follows = distance <= kAroundBytes;
    in_a_row_ = follows ? in_a_row_ + 1 : 0;
    const FillState state = answer(memory, page, follows);
    if (state == FillState::kGone) return forget(*memory);
    if (state == FillState::kAgain) {
      faults[left++] = page;
      continue;
    }
    ++faults_;
    last_fault_ = page;
  }
  faults.resize(left);
  retry_ = retry_ || left != 0;
}

// The rest of a record comes along with a page that follows another: it costs less than the fault
// on the next one would.
FillState FaultServer::answer(const std::shared_ptr<ServedMemory>& memory, uint64_t page,
                              bool follows) {
  const std::optional<LazyPiece> piece = memory->missing().at(page);
  if (!piece) return memory->fill_discarded(page);
  uint64_t length = kPageSize;
  if (follows) {
    const uint64_t along = reach(piece->from);
    length = std::min(piece->bytes(), along);
    around_ = Neighbourhood{.memory = memory, .page = page, .bytes = 2 * along};
  }
  std::array<uint8_t, kAlongBytes> content;
  const std::span<uint8_t> part(content.data(), length);
  try {
    if (source_of(piece->from).try_read(piece->from.position, part)) {
      if (follows) look_ahead(piece->from);
      return memory->fill(page, part);
    }
  } catch (const PageDamaged&) {  // a reader finds out how much
  }
  want(memory, page, follows);
  return FillState::kDone;
}

// Of what is to be had from memory, as much as it looks like going to be touched: whoever faults
// next may wait for the processor that we are on.
uint64_t FaultServer::reach(const ContentPlace& from) {
  constexpr unsigned kDoublingsMax = 3;
  if (source_of(from).waits_for_device()) return kAlongBytes;
  return std::min(kAlongBytes, kPageSize << std::min(in_a_row_, kDoublingsMax));
}

void FaultServer::read_around() {
  if (!around_) return;
  const Neighbourhood around = std::move(*around_);
  around_.reset();
  const Precedence lock(*this);
  if (!around.memory->uffd().valid()) return;
  const uint64_t start = around.page / around.bytes * around.bytes;
  std::array<uint8_t, kAroundBytes> content;
  for (uint64_t address = start; address < start + around.bytes;) {
    const auto piece = around.memory->missing().first_from(address);
    if (!piece || piece->start >= start + around.bytes) return;
    const uint64_t length = std::min(piece->end, start + around.bytes) - piece->start;
    const std::span<uint8_t> part(content.data(), length);
    try {
      if (!source_of(piece->from).try_read(piece->from.position, part)) return;
    } catch (const PageDamaged&) {
      return;
    }
    if (around.memory->fill(piece->start, part) != FillState::kDone) return;
    address = piece->start + length;
  }
}

// The address space has ended (exit, execve). The caller holds the lock.
void FaultServer::forget(const ServedMemory& memory) {
  for (auto at = memories_.begin(); at != memories_.end(); ++at) {
    if (at->get() != &memory) continue;
    pages_filled_ += memory.pages_filled();
    (*at)->close();
    memories_.erase(at);
    break;
  }
  wake();
}

// ---- pages that somebody waits for a device for

// The caller holds the lock.
void FaultServer::want(const std::shared_ptr<ServedMemory>& memory, uint64_t page, bool follows) {
  const auto same = [&](const Wanted& other) {
    return other.memory == memory && other.piece.start <= page && page < other.piece.end;
  };
  // Not for those being read: events may have changed what becomes of them.
  if (std::any_of(wanted_.begin(), wanted_.end(),
                  [&](const Wanted& other) { return same(other) && other.page == page; })) {
    return;
  }
  LazyPiece piece = *memory->missing().around(page);
  const uint64_t start = std::max(piece.start, page / kUnitBytes * kUnitBytes);
  piece.from = piece.from.after(start - piece.start);
  piece.start = start;
  piece.end = std::min(piece.end, start + kUnitBytes);
  wanted_.push_back({memory, page, piece, memory->events_applied(), now_us(), follows});
  wanted_more_.notify_one();
}

void FaultServer::read_wanted() {
  ::pthread_setname_np(::pthread_self(), "fault-reader");
  go_first();
  std::vector<uint8_t> buffer(kUnitBytes);
  try {
    while (const std::optional<Wanted> wanted = next_wanted()) {
      const std::span<uint8_t> content(buffer.data(), wanted->piece.bytes());
      try {
        PageSource& source = source_of(wanted->piece.from);
        if (wanted->follows) source.expect(wanted->piece.from.position);
        source.read(wanted->piece.from.position, content);
        deliver(*wanted, content);
      } catch (const PageDamaged& error) {
        while (!stopping_ && !damage(*wanted->memory, wanted->piece, error.what())) rest_a_while();
      }
      forget_wanted(*wanted);
    }
  } catch (const std::exception& error) {
    lose(error.what());
  }
}

// What was read ahead comes to its end: a reader, who may wait, asks for more. The caller holds the
// lock.
void FaultServer::look_ahead(const ContentPlace& from) {
  if (ahead_ || !source_of(from).may_expect(from.position)) return;
  ahead_ = from;
  wanted_more_.notify_one();
}

std::optional<FaultServer::Wanted> FaultServer::next_wanted() {
  std::unique_lock lock(mutex_);
  for (;;) {
    wanted_more_.wait(lock, [this] { return stopping_ || !wanted_.empty() || ahead_; });
    if (stopping_) return std::nullopt;
    if (!wanted_.empty()) break;
    const ContentPlace from = *ahead_;
    ahead_.reset();
    lock.unlock();
    source_of(from).expect(from.position);
    lock.lock();
  }
  being_read_.push_back(wanted_.front());
  wanted_.pop_front();
  return being_read_.back();
}

void FaultServer::forget_wanted(const Wanted& wanted) {
  const std::lock_guard lock(mutex_);
  std::erase_if(being_read_, [&](const Wanted& other) {
    return other.memory == wanted.memory && other.page == wanted.page &&
           other.since_us == wanted.since_us;
  });
}

void FaultServer::deliver(const Wanted& wanted, std::span<const uint8_t> content) {
  for (int tries = 0; tries < kRetriesMax; ++tries) {
    if (stopping_) return;
    const FillState state = deliver_once(wanted, content);
    if (state != FillState::kAgain) return;
    rest_a_while();  // the serving thread reads the event
  }
  throw SysError("fill a page that is waited for", ENOMEM);
}

// What the page is may have changed while its content was read.
FillState FaultServer::deliver_once(const Wanted& wanted, std::span<const uint8_t> content) {
  const Precedence lock(*this);
  ServedMemory& memory = *wanted.memory;
  if (!memory.uffd().valid()) return FillState::kGone;
  const std::optional<LazyPiece> now = memory.missing().at(wanted.page);
  const uint64_t offset = wanted.page - wanted.piece.start;
  FillState state = FillState::kDone;
  if (!now) {
    state = memory.fill_discarded(wanted.page);
  } else if (!(now->from == wanted.piece.from.after(offset))) {
    want(wanted.memory, wanted.page, wanted.follows);
  } else {
    state = memory.fill(wanted.page, content.subspan(offset, kPageSize));
    if (state == FillState::kDone && memory.events_applied() == wanted.events_applied) {
      state = memory.fill(wanted.piece.start, content);
    }
  }
  if (state == FillState::kGone) forget(memory);
  return state;
}

// False: an event is to be read first.
bool FaultServer::damage(ServedMemory& memory, const LazyPiece& piece, const std::string& what) {
  if (!Uffd::can_poison()) throw SysError(what + "; SIGBUS cannot be raised here", ENOTSUP);
  uint64_t pages = 0;
  {
    const Precedence lock(*this);
    if (!memory.uffd().valid()) return true;
    for (uint64_t page = piece.start; page < piece.end; page += kPageSize) {
      const std::optional<LazyPiece> now = memory.missing().at(page);
      if (!now || !(now->from == piece.from.after(page - piece.start))) continue;
      const FillState state = memory.poison({page, page + kPageSize});
      if (state == FillState::kAgain) return false;
      ++pages;
    }
    pages_damaged_ += pages;
  }
  if (pages != 0 && events_.damaged) events_.damaged(what);
  return true;
}

}  // namespace replpage
