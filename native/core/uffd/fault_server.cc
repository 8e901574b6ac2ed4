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
// Of a page that was faulted on, its neighbours in an aligned window of this size follow.
constexpr uint64_t kAroundBytes = 64 * 1024;
// One read of the source: fits a processor's own cache, so that filling does not read memory again.
constexpr uint64_t kDrainBytes = 256 * 1024;
// Filled under one hold of the lock; bounds how long a fault waits for the drain (about 10 us).
constexpr uint64_t kFillBytes = 32 * 1024;
constexpr long kRetryNs = 50'000;
// Memory for the replica's pages may be short for a while; then the group is lost.
constexpr int kRetriesMax = 200'000;  // 10 s

// A program waits for every fault, so this thread goes first where the rights allow it. It sleeps
// between faults, and the kernel bounds real-time threads (sched(7)).
void go_first() {
  const sched_param lowest{.sched_priority = ::sched_get_priority_min(SCHED_RR)};
  (void)::sched_setscheduler(0, SCHED_RR, &lowest);
}

void rest_a_while() {
  const timespec pause{.tv_sec = 0, .tv_nsec = kRetryNs};
  ::nanosleep(&pause, nullptr);
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

FaultServer::FaultServer(std::vector<Served> served, std::vector<UniqueFd> sources, Events events)
    : sources_(std::move(sources)), events_(std::move(events)), started_us_(now_us()) {
  wake_.reset(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!wake_.valid()) throw SysError::from_errno("eventfd of the fault server");
  for (Served& one : served) {
    if (one.source >= sources_.size()) throw SysError("serve a process without a source", EINVAL);
    LazyRanges ranges;
    for (const PageRange& range : one.ranges) ranges.add(range, range.start);
    memories_.push_back(std::make_shared<ServedMemory>(std::move(one.uffd), std::move(ranges),
                                                       static_cast<int>(one.source)));
  }
  // Signals are the owner's business.
  sigset_t all;
  sigset_t before;
  ::sigfillset(&all);
  ::pthread_sigmask(SIG_SETMASK, &all, &before);
  serving_ = std::thread([this] { serve(); });
  draining_ = std::thread([this] { drain(); });
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

FaultServer::~FaultServer() {
  stopping_ = true;
  wake();
  serving_.join();
  draining_.join();
}

void FaultServer::wake() const {
  const uint64_t one = 1;
  (void)::write(wake_.get(), &one, sizeof one);
}

void FaultServer::lose(const std::string& reason) {
  stopping_ = true;
  {
    const std::lock_guard lock(mutex_);
    if (!loss_.empty()) return;
    loss_ = reason;
  }
  if (events_.lost) events_.lost(reason);
  wake();
}

std::string FaultServer::loss() const {
  const std::lock_guard lock(mutex_);
  return loss_;
}

FaultServer::Figures FaultServer::figures() const {
  const std::lock_guard lock(mutex_);
  Figures figures{
      .pages_left = 0, .pages_filled = pages_filled_, .faults = faults_, .drained_us = drained_us_};
  for (const auto& memory : memories_) {
    figures.pages_left += memory->ranges().pages();
    figures.pages_filled += memory->pages_filled();
  }
  return figures;
}

void FaultServer::read_source(const ServedMemory& memory, uint64_t address,
                              std::span<uint8_t> buffer) const {
  const int fd = sources_[static_cast<size_t>(memory.source())].get();
  while (!buffer.empty()) {
    const ssize_t got = ::pread(fd, buffer.data(), buffer.size(), static_cast<off_t>(address));
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) {
      throw SysError("read the dying process", got == 0 ? ESRCH : errno,
                     {.pid = {}, .address = address, .path = {}});
    }
    buffer = buffer.subspan(static_cast<size_t>(got));
    address += static_cast<uint64_t>(got);
  }
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
    const FillState state = answer(*memory, page);
    if (state == FillState::kGone) return forget(*memory);
    if (state == FillState::kAgain) {
      faults[left++] = page;
      continue;
    }
    ++faults_;
    // Whoever jumps about gains nothing from neighbours, and would wait for them at the next fault.
    const uint64_t distance = std::max(page, last_fault_) - std::min(page, last_fault_);
    last_fault_ = page;
    if (distance <= kAroundBytes) around_ = Neighbourhood{.memory = memory, .page = page};
  }
  faults.resize(left);
  retry_ = retry_ || left != 0;
}

FillState FaultServer::answer(ServedMemory& memory, uint64_t page) {
  const std::optional<LazyPiece> piece = memory.ranges().at(page);
  if (!piece) return memory.fill_discarded(page);
  std::array<uint8_t, kPageSize> content;
  read_source(memory, piece->source, content);
  return memory.fill(page, content);
}

void FaultServer::read_around() {
  if (!around_) return;
  const Neighbourhood around = std::move(*around_);
  around_.reset();
  const Precedence lock(*this);
  if (!around.memory->uffd().valid()) return;
  const uint64_t start = around.page / kAroundBytes * kAroundBytes;
  std::array<uint8_t, kAroundBytes> content;
  for (uint64_t address = start; address < start + kAroundBytes;) {
    const auto piece = around.memory->ranges().first_from(address);
    if (!piece || piece->start >= start + kAroundBytes) return;
    const uint64_t length = std::min(piece->end, start + kAroundBytes) - piece->start;
    const std::span<uint8_t> part(content.data(), length);
    read_source(*around.memory, piece->source, part);
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

// ---- background

void FaultServer::drain() {
  ::pthread_setname_np(::pthread_self(), "drain");
  std::vector<uint8_t> buffer(kDrainBytes);
  try {
    while (!stopping_) {
      const std::optional<Chunk> chunk = next_chunk();
      if (!chunk) break;
      const std::span<uint8_t> content(buffer.data(), chunk->piece.bytes());
      read_source(*chunk->memory, chunk->piece.source, content);
      for (uint64_t at = 0; at < content.size() && !stopping_; at += kFillBytes) {
        const uint64_t length = std::min<uint64_t>(kFillBytes, content.size() - at);
        if (!fill_piece(*chunk, at, content.subspan(at, length))) break;
      }
    }
  } catch (const std::exception& error) {
    return lose(error.what());
  }
  if (!stopping_ && events_.drained) events_.drained();
}

// nullopt: nothing is missing any more, and every userfaultfd is closed.
std::optional<FaultServer::Chunk> FaultServer::next_chunk() {
  const std::lock_guard lock(mutex_);
  retire_finished();
  if (memories_.empty()) {
    drained_us_ = std::max<uint64_t>(1, now_us() - started_us_);
    return std::nullopt;
  }
  Chunk chunk{.memory = memories_.front(), .piece = {}, .events_applied = 0};
  std::optional<LazyPiece> piece = chunk.memory->ranges().first_from(cursor_);
  if (!piece) piece = chunk.memory->ranges().first_from(0);
  chunk.piece = *piece;
  chunk.piece.end = std::min(piece->end, piece->start + kDrainBytes);
  chunk.events_applied = chunk.memory->events_applied();
  cursor_ = chunk.piece.end;
  return chunk;
}

void FaultServer::retire_finished() {
  const size_t before = memories_.size();
  std::erase_if(memories_, [this](const std::shared_ptr<ServedMemory>& memory) {
    if (!memory->ranges().empty()) return false;
    pages_filled_ += memory->pages_filled();
    memory->close();
    return true;
  });
  // The serving thread's poll keeps a closed file alive until it returns.
  if (memories_.size() != before) wake();
}

// False: the rest of the chunk is stale.
bool FaultServer::fill_piece(const Chunk& chunk, uint64_t offset,
                             std::span<const uint8_t> content) {
  for (int tries = 0; tries < kRetriesMax; ++tries) {
    while (precedence_.load() != 0) ::sched_yield();
    {
      const std::lock_guard lock(mutex_);
      ServedMemory& memory = *chunk.memory;
      if (!memory.uffd().valid() || memory.events_applied() != chunk.events_applied) return false;
      const FillState state = memory.fill(chunk.piece.start + offset, content);
      if (state == FillState::kDone) return true;
      if (state == FillState::kGone) {
        forget(memory);
        return false;
      }
    }
    if (stopping_) return false;
    rest_a_while();
  }
  throw SysError("fill pages in the background", ENOMEM);
}

}  // namespace replpage
